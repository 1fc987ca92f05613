"""What a report is made of: the samplers' figures, the training curves, and how the run was made. Plain data only."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .subject import SAMPLERS, Subject
from .trials import SweepData

Group = Literal["data", "teacher", "untuned", "baseline", "control", "tuned", "one_step"]


@dataclass(frozen=True)
class SamplerResult:
    """One row of the table."""

    name: str  # as the reader sees it: "Heun, 5 steps"
    group: Group
    figures: Mapping[str, list[float]]  # e.g. fd_shapes@2k: a value per evaluation draw or seed; empty without any
    evaluations: int | None = None  # of the network, per image
    noise_magnitude: float | None = None  # M of a tuned sampler
    held: bool = False  # trained with gamma (M+1)/M held fixed
    chosen: bool = False  # the best M by a draw that none of these figures saw
    grid: Path | None = None  # PNG of samples
    note: str = ""  # shown instead of figures that are missing: "diverged"


@dataclass(frozen=True)
class Curve:
    """The metrics of one training job."""

    name: str
    stage: str  # teacher, ten_step, one_step
    records: list[Mapping[str, float | int | str]]  # of metrics.jsonl, in order of samples seen
    level: float | None = None  # what its colour follows: M, or another setting of a sweep
    held: bool = False

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Samples seen and the values of one metric; both empty when it was not recorded."""
        points = [(record["samples_seen"], record[key]) for record in self.records if key in record]
        return [float(x) for x, _ in points], [float(y) for _, y in points]


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows."""

    name: str  # of the run
    rows: list[SamplerResult]
    curves: list[Curve] = field(default_factory=list)
    manifest: Mapping[str, object] = field(default_factory=dict)  # command, seed, versions, hardware, seconds, ...
    config: str = ""  # the resolved settings, as YAML
    failures: Mapping[str, str] = field(default_factory=dict)  # one line about each job that failed
    subject: Subject = SAMPLERS
    sweep: SweepData | None = None  # over settings; lists of M are in the rows


def mean_sd(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the draws; the latter is NaN for a single one."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def find_metric(rows: Iterable[SamplerResult], kind: str) -> str | None:
    """The full name of a kind of figure: find_metric(rows, "fd") -> "fd_shapes@2k"; None when nobody measured it.

    Where names differ, in features or in the number of images, it is the one that most rows have.
    """
    names = [name for row in rows for name in row.figures if name.startswith((f"{kind}_", f"{kind}@"))]
    return max(names, key=names.count, default=None)


def describe_magnitude(noise_magnitude: float) -> str:
    """M as the reader sees it."""
    return "\N{INFINITY}" if math.isinf(noise_magnitude) else f"{noise_magnitude:g}"


def tuned_rows(rows: Iterable[SamplerResult], metric: str, held: bool = False) -> list[SamplerResult]:
    """The measured samplers of the sweep over M, by rising M; with or without gamma held."""
    swept = [row for row in rows if row.group == "tuned" and row.held == held and metric in row.figures]
    return sorted(swept, key=lambda row: row.noise_magnitude)


def best_tuned(rows: Iterable[SamplerResult], metric: str, held: bool = False) -> SamplerResult | None:
    """The sampler of the sweep that was chosen, or else the one with the lowest mean of `metric`."""
    swept = tuned_rows(rows, metric, held)
    chosen = [row for row in swept if row.chosen]
    return min(chosen or swept, key=lambda row: mean_sd(row.figures[metric])[0], default=None)


def decimals(values: Iterable[float], spreads: Iterable[float] = ()) -> int:
    """Digits after the point: three significant ones of the typical value, one more where the spread would read 0."""
    for_values = _digits(values, significant=3)
    for_spreads = _digits(spreads, significant=1)
    return 1 if for_values is None else max(for_values, min(for_values + 1, for_spreads or 0))


def _digits(values: Iterable[float], significant: int) -> int | None:
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes:
        return None
    return min(5, max(0, significant - 1 - math.floor(math.log10(statistics.median(sizes)))))
