"""What is known of a job: how far its training is, what it does now, or what became of it."""

import math
import re
from dataclasses import dataclass, replace

from .names import Record

TRAINING, TRAINED = "training", "trained"
# How events begin after which a job does nothing more.
ENDS = ("failed", "diverged", "judged", "evaluated", "not copied yet")


@dataclass(frozen=True)
class Status:
    """The newest of one job's records in words and numbers."""

    job: str  # stage and trial
    settings: str = ""  # what the trial differs in
    state: str = ""
    finished: bool = False
    done: float = 0.0  # samples seen
    total: float = math.nan
    per_second: float = 0.0
    figure: float | None = None  # of the sweep's metric

    @property
    def trial(self) -> str:
        """The trial's name, or that of a stage that has one job."""
        return self.job.rpartition(" ")[2]

    @property
    def left(self) -> str:
        """The time until the end of training, for people; empty when it does not train."""
        seconds = (self.total - self.done) / self.per_second if self.per_second > 0 else math.nan
        return clock(seconds) if self.state == TRAINING else ""

    @property
    def state_in_short(self) -> str:
        """Without what follows a colon, the reason of a failure, and without the samples at which it goes on."""
        return re.split(r":| at \d", self.state, maxsplit=1)[0]


class Statuses(dict[str, Status]):
    """Of all jobs by name, those that ended last at the end; `metric` is what trials are judged by."""

    def __init__(self, metric: str = ""):
        super().__init__()
        self._metric = metric

    def take(self, record: Record) -> Status | None:
        """The status of the record's job after it; None for a record that tells of none."""
        told = record.get("event") or record.get("doing")
        if not (told or (record.get("samples_total") and "samples_seen" in record)):
            return None
        job = name_of(record)
        status = self._after(record, self.get(job, Status(job)), told)
        if status.finished:
            self.pop(job, None)
        self[job] = status
        return status

    def _after(self, record: Record, before: Status, told: str | None) -> Status:
        figure = record.get(self._metric, record.get(f"evaluation/{self._metric}", before.figure))
        known = replace(before, settings=record.get("settings") or _magnitude(record) or before.settings, figure=figure)
        if told:
            return replace(known, state=str(told), finished=str(told).startswith(ENDS))
        done, total = record["samples_seen"], record["samples_total"]
        state, speed = TRAINED if done >= total else TRAINING, record.get("images_per_second", 0.0)
        return replace(known, state=state, finished=state == TRAINED, done=done, total=total, per_second=speed)


def _magnitude(record: Record) -> str:
    return f"M={record['noise_magnitude']:g}" if "noise_magnitude" in record else ""


def name_of(record: Record) -> str:
    """The stage and the trial of a record; a stage of one job has one name."""
    return " ".join(dict.fromkeys(str(record[key]) for key in ("stage", "trial") if record.get(key)))


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; '-' when unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
