"""How far a job is trained and what it is judged by there: its end, or a number of samples that a sweep decides at."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..metrics.jsonl import training_records
from ..samplers.divergence import DivergedError
from .job import Job, outcome_of
from .learning import Learning, Networks
from .learnings import diverged_result, result_of

SELECTION = "selection"  # the metric that a stage is chosen by unless the sweep names another


def recorded(folder: Path, metric: str) -> float:
    """The last value of a figure of a job's log. Raises ValueError naming those that there are."""
    records = training_records(folder)
    values = [record[metric] for record in records if metric in record]
    if not values:
        names = ", ".join(sorted(key for key in records[-1] if "/" in key)) if records else "none"
        raise ValueError(f"sweep.metric={metric} is not recorded; use {SELECTION}, or one of: {names}")
    return values[-1]


@dataclass(frozen=True)
class Goal:
    """Where training ends for now: at `until` samples, where `metric` is measured, or at its end."""

    until: int | None = None
    metric: str = SELECTION

    @classmethod
    def of(cls, payload: Mapping) -> "Goal":
        """That of a job, from its payload."""
        return cls(payload.get("until"), payload.get("metric", SELECTION))

    def reached(self, job: Job, learning: Learning, networks: Networks, samples: int) -> dict:
        """The job's result at the end of its training, before it what is known so far; with the metric's `value`."""
        finished = samples == learning.settings.training.samples
        result = result_of(job, learning, networks, samples) if finished else {"samples": samples}
        if self.until is None:
            return result
        if self.metric == SELECTION:
            return result | {"value": result["selection"] if finished else learning.select(networks)}
        return result | {"value": math.inf if "note" in result else recorded(job.folder, self.metric)}

    def diverged(self, learning: Learning, error: DivergedError) -> dict:
        """What `reached` would have given of a training that was stopped because its samples are no pictures."""
        result = diverged_result(learning, error)
        if self.until is None:
            return result
        finished = self.until == learning.settings.training.samples
        return (result if finished else {"reason": result["reason"]}) | {"value": math.inf}

    def conclude(self, job: Job, result: dict, seconds: float) -> dict:
        """Keeps the result of a job that is done; of one that may go on it only tells where metrics go."""
        if "selection" in result or self.until is None:
            return job.complete(result, seconds)
        new = {f"evaluation/{SELECTION}": result["value"]} if self.metric == SELECTION else {}
        job.tell(event=outcome_of(result, "judged"), **new)  # any other figure is in the log already
        return result | {"name": job.name, "stage": job.stage}
