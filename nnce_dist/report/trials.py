"""The trials of a sweep as a report gets them: a row each, which of them did best, and what else a sweep leaves."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..sweep.history import Outcome

State = Literal["finished", "stopped", "diverged", "failed"]
SEED = "run.seed"
M = "objective.noise_magnitude"


@dataclass(frozen=True)
class TrialRow:
    """What one trial was, and what became of it."""

    name: str
    state: State
    settings: Mapping[str, Any]  # by dotted key; the last ones where they changed in training
    metric: str  # what it is judged by
    mode: str = "min"  # whether a low or a high value of it is good
    value: float | None = None  # of the metric, where training ended; None without any
    figures: Mapping[str, list[float]] = field(default_factory=dict)  # a value per evaluation draw
    selection: float | None = None
    samples: int = 0  # seen by the network
    seconds: float | None = None
    error: str = ""  # one line
    run: str = ""  # where trials of several runs are compared
    repeated: bool = False  # these runs differ in their seeds alone
    records: list[Mapping[str, float | int | str]] = field(default_factory=list)  # of its metrics.jsonl
    stage: str = ""

    def mean(self, figure: str) -> float | None:
        """Over the draws; None where the figure was not measured."""
        return statistics.fmean(self.figures[figure]) if figure in self.figures else None

    @property
    def apart(self) -> str:
        """The run, unless runs repeat each other."""
        return "" if self.repeated else self.run

    @property
    def score(self) -> float:
        """The metric's value, lower is better; inf without one."""
        if self.value is None or not math.isfinite(self.value):
            return math.inf
        return self.value if self.mode == "min" else -self.value


@dataclass(frozen=True)
class SweepData:
    """Everything that a report shows about a sweep, or about trials of several runs."""

    trials: list[TrialRow]
    best: list[TrialRow] = field(default_factory=list)  # the same settings with every seed; empty if none was finished
    logarithmic: frozenset[str] = frozenset()  # settings that are drawn on a logarithmic scale
    strategy: str = ""
    outcomes: list[Outcome] = field(default_factory=list)  # of every segment

    @property
    def keys(self) -> list[str]:
        """The settings that trials have, in their order."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.settings))

    @property
    def segmented(self) -> bool:
        """Whether trials were judged on their way: stopped or copied."""
        return len({one.samples for one in self.outcomes}) > 1

    @property
    def metrics(self) -> list[str]:
        """What trials are judged by."""
        return list(dict.fromkeys(trial.metric for trial in self.trials))


def best_of(trials: Iterable[TrialRow]) -> list[TrialRow]:
    """The finished trials of the settings that did best, the best seed first; empty if none was finished."""
    first = next(iter(ranked(trials)), [])
    return [trial for trial in first if math.isfinite(trial.score)]


def ranked(trials: Iterable[TrialRow]) -> list[list[TrialRow]]:
    """Trials that came to their end, by settings, the best first (`rank`); of each the best seed first."""
    groups = by_settings(trial for trial in trials if trial.state in ("finished", "diverged")).values()
    return [sorted(group, key=lambda trial: trial.score) for group in sorted(groups, key=rank)]


def rank(trials: Iterable[TrialRow]) -> tuple[int, float]:
    """Of the same settings with several seeds, low is good: most finished seeds first, then the mean over these."""
    finite = [trial for trial in trials if math.isfinite(trial.score)]
    return -len(finite), mean_score(finite) if finite else math.inf


def mean_score(trials: Iterable[TrialRow]) -> float:
    """Over seeds."""
    return statistics.fmean(trial.score for trial in trials)


def by_settings(trials: Iterable[TrialRow]) -> dict[tuple, list[TrialRow]]:
    """Trials that differ in nothing but their seed, together."""
    groups: dict[tuple, list[TrialRow]] = {}
    for trial in trials:
        groups.setdefault((trial.apart, others(trial, SEED)), []).append(trial)
    return groups


def others(trial: TrialRow, *left_out: str) -> tuple:
    """The trial's settings but those left out, as something that can be compared."""
    return tuple((key, str(value)) for key, value in trial.settings.items() if key not in left_out)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key by as many of its last words as tell it from the others."""
    keys = list(keys)

    def ending(key: str, words: int) -> str:
        return ".".join(key.split(".")[-words:])

    def short(key: str) -> str:
        lengths = range(1, key.count(".") + 2)
        return next(ending(key, n) for n in lengths if [ending(k, n) for k in keys].count(ending(key, n)) == 1)

    return {key: short(key) for key in keys}
