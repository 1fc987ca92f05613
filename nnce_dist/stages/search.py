"""A sweep over a space: the segments of a strategy as jobs, each trial an ordinary run in its own folder."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ..config.load import with_settings
from ..config.schema import Config, Training
from ..config.sweep_checks import ADAPTIVE, draws, space, swept_stage
from ..sweep import strategies
from ..sweep.history import History, Outcome, Segment, Strategy
from ..sweep.space import Point, points
from ..sweep.suggestions import Suggested
from ..training import checkpoint
from ..training.checkpoint import write_json
from ..training.mirror import FOLDER
from .folder import job_folder, read_result
from .goal import SELECTION, recorded
from .launch import Launcher
from .mirror import RunMirror
from .packing import each_result, may_share, pack_of, run_packed
from .trials import best, payload

HISTORY = "sweep.jsonl"
ADOPTED = "adopted.json"  # whose state a trial of a population has gone on with
INTERVALS = 16  # of a training, where the sweep does not say how long the first rung or a generation is


def training(config: Config) -> Training:
    """Length and bookkeeping of the swept stage."""
    return getattr(config, swept_stage(config)).training


def trial_points(config: Config) -> list[Point]:
    """The settings of every trial, those of a population at its start; suggested ones are not known beforehand."""
    return points(space(config), draws(config), config.run.seed)


def levels(config: Config) -> list[int]:
    """Samples at which trials are judged; the last is the end of their training."""
    settings, sweep = training(config), config.sweep
    interval = sweep.interval or settings.samples // INTERVALS
    if sweep.strategy == "asha":
        return strategies.rungs(interval, sweep.reduction, settings.samples, settings.batch)
    if sweep.strategy == "pbt":
        return strategies.generations(interval, settings.samples, settings.batch)
    return [settings.samples]


def strategy(config: Config) -> Strategy:
    """The strategy that the configuration names."""
    sweep, seed, ends, together = config.sweep, config.run.seed, levels(config), config.sweep.per_process
    if sweep.strategy == "tpe":
        return Suggested(space(config), sweep.trials, sweep.batch, ends[-1], seed, together)
    found = trial_points(config)
    if sweep.strategy == "asha":
        return strategies.Halving(found, ends, sweep.reduction, together)
    if sweep.strategy == "pbt":
        return strategies.Population(found, ends, space(config), seed, together)
    return strategies.Whole(found, ends[-1])


def name_of(trial: int) -> str:
    """A trial's name."""
    return f"trial-{trial:03}"


def trial_payload(config: Config, root: Path, trial: int, point: Point) -> dict:
    """What `jobs.run_job` takes for a whole trial."""
    return payload(with_settings(config, point), root, swept_stage(config), name_of(trial))


def run(config: Config, root: Path, jobs: Launcher, mirror: RunMirror | None, say: Callable[[str], None]) -> list[dict]:
    """The results of all trials (see `Search.results`)."""
    if config.sweep.strategy in ADAPTIVE:
        search = Search(config, root, mirror, say)
        if search.strategy.segments(search.history):
            jobs.follow(search)
        results = search.results()
    else:
        results = _whole(config, root, jobs)
    if chosen := best(results, config.sweep.mode):
        settings = ", ".join(f"{key}={value}" for key, value in chosen["point"].items())
        say(f"best trial: {chosen['name']} ({settings}; {config.sweep.metric} {chosen['value']:.4g})")
    return results


def _whole(config: Config, root: Path, jobs: Launcher) -> list[dict]:
    found = trial_points(config)
    payloads = [trial_payload(config, root, trial, point) for trial, point in enumerate(found)]
    results, metric = run_packed(jobs, payloads, config.sweep.per_process), config.sweep.metric
    for trial, (point, result) in enumerate(zip(found, results, strict=True)):
        value = None if "error" in result else result.get(SELECTION)
        if metric != SELECTION and not {"error", "note"} & result.keys():
            value = recorded(job_folder(root, result["stage"], result["name"]), metric)
        result.update(trial=trial, point=point, value=value)
    return results


def pack_name(segments: list[Segment]) -> str:
    """The name of a pack: no other segments, and none that begin otherwise, ever have it."""
    told = json.dumps([(one.trial, one.start, one.source, one.point) for one in segments], sort_keys=True)
    return f"{len(segments)}-to-{segments[0].samples}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _cohort(segment: Segment) -> tuple[int, int, int]:
    return segment.samples, segment.start, segment.cohort


class Search:
    """A feed of jobs: what a strategy wants trained next; every outcome is kept before the next decision."""

    def __init__(self, config: Config, root: Path, mirror: RunMirror | None, say: Callable[[str], None]):
        self._config, self._root, self._mirror, self._say = config, root, mirror, say
        self.strategy, self.history = strategy(config), History(root / HISTORY, config.sweep.mode)
        self._stage, self._at_work, self._copied = swept_stage(config), dict[str, Segment](), True
        self._try_again()

    def next(self) -> dict | None:
        """The most urgent segment that is not at work, with those that may share its process."""
        ready = self.strategy.segments(self.history)
        for segment in ready:
            self._adopt(segment)  # all, before any of them overwrites what another one begins with
        waiting = [segment for segment in ready if name_of(segment.trial) not in self._at_work]
        if not waiting:
            return None
        together = self._sharing(waiting)
        self._at_work |= {name_of(segment.trial): segment for segment in together}
        payloads = [self._payload(segment) for segment in together]
        return pack_of(payloads, pack_name(together)) if len(together) > 1 else payloads[0]

    def _sharing(self, waiting: list[Segment]) -> list[Segment]:
        """The first one and those of its cohort that it may share a process with: whoever came when."""
        first, payload = waiting[0], self._payload(waiting[0])
        alike = [one for one in waiting[1:] if _cohort(one) == _cohort(first)]
        if self._config.sweep.per_process == 1:
            return [first]
        return [first, *(one for one in alike if may_share(payload, self._payload(one)))]

    def _payload(self, segment: Segment) -> dict:
        until = {"until": segment.samples, "metric": self._config.sweep.metric}
        return trial_payload(self._config, self._root, segment.trial, segment.point) | until

    def done(self, payload: dict, result: list[dict] | dict) -> None:
        """Keeps what became of a segment, or of those of a pack; in the mirror too: another machine decides alike."""
        results = each_result(payload, result) if "trials" in payload else [result]
        for one, became in zip(payload.get("trials", [payload]), results, strict=True):
            segment = self._at_work.pop(one["name"])
            facts = segment.trial, segment.samples, segment.point, became.get("value"), segment.source
            self.history.add(Outcome(*facts, error=became.get("error", "")))
        if self._mirror:
            self._copy(self._mirror)

    def results(self) -> list[dict]:
        """Of every trial name, stage, number, settings, samples reached, the metric's value there, and more.

        A trial that was trained to its end also has what its job gave, one that was stopped early "stopped": true, and
        one that failed its "error". A member of a population that failed and went on as a copy has a result for that.
        """
        known = self.history.asked_for(self.strategy)
        last = {trial: known[trial, samples] for trial, samples in sorted(known)}
        replaced = [one for one in known.values() if one.error and one is not last[one.trial]]
        return [*map(self._result, last.values()), *map(self._replaced, replaced)]

    def _try_again(self) -> None:
        """Has what failed in an earlier start trained again, unless others were decided on it."""
        self.history.forget_failures(self.strategy.settled(self.history))

    def _copy(self, mirror: RunMirror) -> None:
        """Copies the history; if that fails the next outcome tries again, and the run's end."""
        try:
            mirror.check()
            mirror.push(self._root)
            self._copied = True
        except OSError as error:
            if self._copied:
                line = " ".join(str(error).split())
                self._say(f"{HISTORY} not copied yet: {line}; the sweep goes on, the next outcome tries again")
            self._copied = False

    def _replaced(self, outcome: Outcome) -> dict:
        name = f"{name_of(outcome.trial)} at {outcome.samples} samples"
        return {"name": name, "stage": self._stage, "error": f"{outcome.error}; it went on as a copy of another trial"}

    def _result(self, outcome: Outcome) -> dict:
        name = name_of(outcome.trial)
        known = {"name": name, "stage": self._stage, "trial": outcome.trial, "point": outcome.point}
        known |= {"samples": outcome.samples, "value": outcome.value}
        if outcome.error:
            return known | {"error": outcome.error}
        if outcome.samples < training(self._config).samples:
            return known | {"stopped": True}
        finished = read_result(job_folder(self._root, self._stage, name))
        return (finished or {"stopped": True}) | known  # without one where the copy that the run goes on from lacks it

    def _adopt(self, segment: Segment) -> None:
        """Gives a trial the state that another one had at the segment's start, once."""
        if segment.source is None:
            return
        source, target = (job_folder(self._root, self._stage, name_of(n)) for n in (segment.source, segment.trial))
        marker, adopted = target / ADOPTED, {"source": segment.source, "samples": segment.start}
        if marker.exists() and json.loads(marker.read_text()) == adopted:
            return
        checkpoint.copy(checkpoint.at(source / FOLDER, segment.start), target / FOLDER)
        write_json(marker, adopted)
        self._say(
            f"{name_of(segment.trial)} goes on with the state of {name_of(segment.source)} at {segment.start:,} samples"
        )
