"""Every kind of figure that a report shows: its words, which way is better, and where it is compared."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .data import SamplerResult, find_metric
from .trials import TrialRow


@dataclass(frozen=True)
class Kind:
    """A kind of figure; kinds with a `label` are compared in sentences and drawn over M."""

    heading: str  # of its column
    sign: int  # +1: higher is better; -1: lower
    factor: float = 1  # shown = factor * measured
    label: str = ""  # in a sentence: "on FD"
    unit: str = ""  # of a difference in a sentence
    caption: str = ""  # of its picture over M

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "higher is better" if self.sign > 0 else "lower is better"


KINDS = {  # the first that was measured is the one that trials are chosen and pointed out by
    "fd": Kind("FD", -1, label="FD", caption="Fr\N{LATIN SMALL LETTER E WITH ACUTE}chet distance by noise magnitude M"),
    "class_accuracy": Kind(
        *("Class accuracy, %", 1, 100, "class accuracy", " points"),
        caption="Share of samples that show the class asked for, by M",
    ),
    "kd": Kind("KD", -1),
    "precision": Kind("Precision", 1),
    "recall": Kind("Recall", 1),
    "log_ratio_error_data": Kind(
        *("RMS error of ln r on data", -1),
        label="the error of ln r",
        unit=" nats",
        caption="Root mean square error of the estimated ln r on held-out data, by M",
    ),
    "kl_error": Kind(
        *("Error of KL", -1),
        label="the error of KL",
        unit=" nats",
        caption="Difference between the mean of ln r on held-out data and the true KL divergence, by M",
    ),
    "log_ratio_error_noise": Kind("RMS error of ln r on noise", -1),
    "cross_entropy": Kind(
        *("Held-out cross-entropy", -1),
        label="held-out cross-entropy",
        unit=" nats",
        caption="Cross-entropy of telling held-out data from noise, by M",
    ),
    "kl_lower_bound": Kind("Lower bound of KL", 1),
    "calibration_error": Kind("Error of ln E[r] on noise", -1),
}


@dataclass(frozen=True)
class Measure:
    """A kind of figure by which trials are compared, under the name that most rows have."""

    metric: str
    name: str  # of the kind
    kind: Kind

    def show(self, value: float, digits: int) -> str:
        """The value as the reader sees it."""
        return f"{self.kind.factor * value:.{digits}f}"


def measures(rows: Iterable[SamplerResult]) -> list[Measure]:
    """The figures that were measured and that rows are compared on; the first is the most important."""
    rows = list(rows)
    found = {name: find_metric(rows, name) for name, kind in KINDS.items() if kind.label}
    return [Measure(metric, name, KINDS[name]) for name, metric in found.items() if metric]


# ---- of the trials of a sweep ----------------------------------------------------------------------------------------


def figure_names(trials: Iterable[TrialRow]) -> list[str]:
    """The full name of every figure that a trial has, the important ones first; different names are never joined."""
    names, kinds = dict.fromkeys(name for trial in trials for name in trial.figures), list(KINDS)
    return sorted(names, key=lambda name: (kinds.index(kind) if (kind := kind_of(name)) else len(kinds), name))


def kind_of(name: str) -> str | None:
    """The kind of a figure by its full name: fd of fd_shapes@2k; None for one that `KINDS` does not have."""
    return next((kind for kind in KINDS if name.startswith((f"{kind}_", f"{kind}@"))), None)


def measured_by(trials: Iterable[TrialRow]) -> Iterator[tuple[str, Callable[[TrialRow], float | None]]]:
    """What trials are compared by: each metric, then each figure that `KINDS` compares; the name and how to get it."""
    trials = list(trials)
    for metric in dict.fromkeys(trial.metric for trial in trials):
        yield metric, lambda trial, metric=metric: trial.value if trial.metric == metric else None
    for name in figure_names(trials):
        if (kind := kind_of(name)) and KINDS[kind].label:
            yield name, lambda trial, name=name: trial.mean(name)
