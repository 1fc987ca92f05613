"""The strategies: every trial to its end; asynchronous halving; a population; suggestions from what was seen."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import takewhile

from .cohorts import cohorts
from .history import History, Segment, Strategy
from .space import RANGES, Distribution, Point, stream

PERTURBABLE = (  # settings of stages that a state fits whatever they are: no network and no data are made of them
    *("objective.noise_magnitude", "objective.*_regularisation", "objective.schedule.[!k]*", "network.dropout"),
    *("*.optimiser.*", "teacher.p_*", "teacher.ema_*", "data.flip", "one_step.*"),
    *("ten_step.sampler.*", "ten_step.value.*", "ten_step.*_weight", "ten_step.tau*", "ten_step.time_cost*"),
    *("ten_step.velocity_*", "ten_step.log_sigma_lr_scale"),
)


@dataclass(frozen=True)
class Whole(Strategy):
    """Every trial is trained to its end."""

    points: Sequence[Point]
    samples: int

    def segments(self, history: History) -> list[Segment]:
        """All that have no outcome."""
        trials = enumerate(self.points)
        return [Segment(n, self.samples, point) for n, point in trials if (n, self.samples) not in history]


@dataclass(frozen=True)
class Halving(Strategy):
    """Asynchronous successive halving (Li et al. 2018, ASHA) on the samples seen, its verdicts free of timing.

    ASHA judges a trial against those that came to the rung before it. Here "before" is the trials' order, not the
    clock's, in blocks of `reduction`, or of as many as share a process: a block is judged when all of it has come,
    against all blocks up to it, and those of it who go on are a cohort.
    """

    points: Sequence[Point]
    rungs: Sequence[int]  # samples, ascending; the last is the end
    reduction: float
    together: int = 1  # trials that share a process

    def segments(self, history: History) -> list[Segment]:
        """Trials that have not come to a rung that they may go to; early ones first, for all others wait for them."""
        trials = range(len(self.points))
        reach = self._in_cohorts((begin, trials[begin : begin + self._block]) for begin in trials[:: self._block])
        ready, complete, start = [], True, 0
        for rung in self.rungs:
            missing = [n for n in reach if (n, rung) not in history]
            ready += [Segment(n, rung, self.points[n], start=start, cohort=reach[n]) for n in missing]
            reach, complete = self._survivors(list(reach), complete, rung, history)
            start = rung
        return sorted(ready, key=lambda segment: segment.trial)

    @property
    def _block(self) -> int:
        return block(self.reduction, self.together)

    def _in_cohorts(self, blocks: Iterable[tuple[int, Sequence[int]]]) -> dict[int, int]:
        """The cohorts of trials that are decided on together, given with the place of their block; in order."""
        parts = (cohorts(trials, self.together, begin) for begin, trials in blocks)
        return {trial: cohort for part in parts for trial, cohort in part.items()}

    def _survivors(self, reach: list[int], complete: bool, rung: int, history: History) -> tuple[dict[int, int], bool]:
        """Those who go on, with their cohorts, and whether they are all; `reach` come to the rung.

        If `complete`, nobody else does.
        """
        size = self._block
        known = list(takewhile(lambda trial: (trial, rung) in history, reach))
        finished = complete and len(known) == len(reach)
        decided = known if finished else known[: len(known) // size * size]
        begins = range(0, len(decided), size)
        best = ((begin, self._best_of(decided[: begin + size], begin, rung, history)) for begin in begins)
        return self._in_cohorts(best), finished

    def _best_of(self, trials: list[int], begin: int, rung: int, history: History) -> list[int]:
        """Those from position `begin` on that are among the best 1/reduction of all."""
        ranked = sorted(trials, key=lambda trial: (history.score(trial, rung), trial))
        best = set(ranked[: max(int(len(trials) / self.reduction), 1)])
        return [trial for trial in trials[begin:] if trial in best and history.score(trial, rung) < math.inf]


@dataclass(frozen=True)
class Population(Strategy):
    """Population-based training (Jaderberg et al. 2017) in generations, on the samples seen.

    After each the worst quarter goes on with the state and the changed settings of one of the best quarter.
    """

    points: Sequence[Point]
    ends: Sequence[int]  # samples at the end of each generation
    space: Mapping[str, Distribution]
    seed: int
    together: int = 1  # members that share a process

    def segments(self, history: History) -> list[Segment]:
        """What is missing of the first generation that is not over."""
        parts = cohorts(range(len(self.points)), self.together)
        generation = [Segment(n, self.ends[0], point, cohort=parts[n]) for n, point in enumerate(self.points)]
        for end in (*self.ends[1:], None):
            if missing := [one for one in generation if (one.trial, one.samples) not in history]:
                return missing
            if end is None or all(history.score(one.trial, one.samples) == math.inf for one in generation):
                break
            generation = self._next(generation, end, history)
        return []

    def settled(self, history: History) -> int:
        """The end of the generation that was begun last: those that failed in one before go on as copies."""
        begun = (one.samples for one in self.segments(history))
        return max([0, *begun, *(samples for _, samples in history)])

    def _next(self, generation: list[Segment], end: int, history: History) -> list[Segment]:
        """The generation that follows one that is over."""
        ranked = sorted(generation, key=lambda one: (history.score(one.trial, one.samples), one.trial))
        quarter = max(len(ranked) // 4, 1) if len(ranked) > 1 else 0
        best, worst = ranked[:quarter], {one.trial for one in ranked[len(ranked) - quarter :]}
        best = [one for one in best if history.score(one.trial, one.samples) < math.inf]
        going = []
        for one in generation:
            later = replace(one, samples=end, start=one.samples, source=None)
            if one.trial in worst or history.score(one.trial, one.samples) == math.inf:
                random = stream(self.seed, "exploit", one.trial, one.samples)
                chosen = random.choice(best)
                point = perturbed(chosen.point, self.space, random)
                later = replace(later, source=chosen.trial, point=point)
            going.append(later)
        return going


def misfits(space: Mapping[str, Distribution]) -> Iterator[str]:
    """Why a population cannot have this space, in one line; a grid's values go with the states, and fit them."""
    drawn = (key for key, what in space.items() if what.kind != "grid")
    if wrong := [key for key in drawn if not any(fnmatch(key, pattern) for pattern in PERTURBABLE)]:
        yield (
            f"sweep.strategy=pbt: varies {', '.join(wrong)} in training, which makes other networks or data that the "
            "states of other trials do not fit; write grid(...), or take it out of sweep.space"
        )


def perturbed(point: Point, space: Mapping[str, Distribution], random) -> Point:
    """Numbers times 1.2 or 0.8, everything drawn anew with a probability of 1/4 (Jaderberg et al., section 4)."""
    changed = {}
    for key, what in space.items():
        anew = random.random() < 0.25
        if what.kind == "grid":
            changed[key] = point[key]
        elif anew or what.kind not in RANGES:
            changed[key] = what.draw(random) if anew else point[key]
        else:
            changed[key] = what.clipped(point[key] * random.choice((0.8, 1.2)))
    return changed


def rungs(first: int, reduction: float, samples: int, batch: int) -> list[int]:
    """Samples of ASHA's rungs: from `first` on, each `reduction` times the one before, whole batches; then the end."""
    found, position = [], float(max(first, batch))
    while round(position / batch) * batch < samples:
        found.append(round(position / batch) * batch)
        position *= reduction
    return [*dict.fromkeys(found), samples]


def generations(interval: int, samples: int, batch: int) -> list[int]:
    """Samples at the ends of a population's generations, whole batches."""
    step = max(round(interval / batch), 1) * batch
    return [*range(step, samples, step), samples]


def block(reduction: float, together: int) -> int:
    """How many of ASHA's trials are judged at a time, where so many share a process."""
    return max(math.ceil(reduction), together)


def expected_at(rungs: Sequence[int], reduction: float, trials: int, together: int = 1) -> dict[int, int]:
    """How many of ASHA's trials can be expected at each rung, when nothing is known of them."""
    found, size = {}, block(reduction, together)
    for rung in rungs:
        found[rung] = trials
        ends = [min(begin + size, trials) for begin in range(0, trials, size)]
        # of a block, whose trials are no better than those before it, the part that is the best of all goes on
        going = (max(int(end / reduction), 1) / end * ((end - 1) % size + 1) for end in ends)
        trials = round(sum(going))
    return found
