"""What a run does, seen from outside while it does it: its log of record and its checkpoints, read every 50 ms."""

import threading
import time
from pathlib import Path

from nnce_dist.metrics import jsonl

INTERVAL = 0.05  # seconds; a step takes several times as long


class Witness:
    """Follows a job's folder in a thread of its own; use as a context manager."""

    def __init__(self, job: Path, batch: int):
        self._job, self._batch = job, batch
        self.position = 0  # samples seen, by the log as it is now
        self.highest = 0  # by the log at any time
        self.moved = 0.0  # when the last record was seen first
        self.resumed_at: list[int] = []  # positions that the log was cut back to
        self.committed: set[int] = {0}  # positions that a checkpoint was seen at
        self._advances: list[float] = []  # when the log went beyond where it had ever been
        self._seen: list[tuple[int, float]] = []
        self._fault = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Witness":
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._thread.join(10)

    def fault(self) -> None:
        """The moment of the fault."""
        self._fault = time.monotonic()

    @property
    def seconds(self) -> float:
        """From the fault until training was beyond where it had come: the end of its longest standstill since."""
        before = max((moment for moment in self._advances if moment <= self._fault), default=self._fault)
        moments = [before, *(moment for moment in self._advances if moment > self._fault)]
        return max(zip(moments, moments[1:], strict=False), key=lambda gap: gap[1] - gap[0])[1] - self._fault

    def _follow(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """One look at the log and the checkpoints."""
        self.committed |= {int(path.parent.name) for path in self._job.glob("checkpoints/[0-9]*/manifest.json")}
        seen = [(record["samples_seen"], record["time"]) for record in records(self._job)]
        same = sum(1 for old, new in zip(self._seen, seen, strict=False) if old == new)
        if same < len(self._seen):
            self.resumed_at.append(seen[same - 1][0] if same else 0)
        if len(seen) > same:
            self.moved = time.monotonic()
        self._seen = seen
        self.position = seen[-1][0] if seen else 0
        if self.position > self.highest:
            self.highest = self.position
            self._advances.append(time.monotonic())


def records(job: Path) -> list[dict]:
    """The job's records of training steps, in order."""
    path = job / jsonl.FILE_NAME
    try:
        return [record for record in jsonl.read(path) if "samples_seen" in record] if path.exists() else []
    except FileNotFoundError:  # gone since
        return []
