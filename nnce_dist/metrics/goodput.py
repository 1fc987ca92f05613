"""Goodput: the part of a job's time that went into steps that count. The rest is starts, standstills and repetition."""

import time

from .names import Record


class Goodput:
    """Adds up one job's useful time over all its starts; `before` is what its log says of those that were.

    Steps count as they stand in the log, so one that was made again counts once; each takes what steps took since the
    last line or start, waiting for data and for checkpoints included. The wall clock alone knows of the time between
    two starts. It runs on while a sweep lets a trial wait.
    """

    def __init__(self, before: Record):
        self._started = before.get("started", time.time())
        self._useful, self._counted = before.get("useful_seconds", 0.0), before.get("samples_seen", 0)

    @property
    def start(self) -> dict[str, float]:
        """What a job's log begins with: a start that comes to no line of figures is not forgotten."""
        return {"started": self._started}

    def at(self, samples_seen: int, per_second: float) -> dict[str, float]:
        """The figures of a log line at a number of samples, of which so many were seen per second."""
        self._useful += (samples_seen - self._counted) / per_second
        self._counted = samples_seen
        elapsed = max(time.time() - self._started, self._useful)  # the wall clock may have been set back
        return {**self.start, "useful_seconds": self._useful, "goodput": self._useful / elapsed}
