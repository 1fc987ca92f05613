"""One live line per stage and trial: percent, images/s, time left, the trial's M; plain lines where no terminal is."""

import math
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from .names import Record
from .recorder import Sink


@dataclass(frozen=True)
class Status:
    """What a progress line says about one training run."""

    title: str
    done: float  # samples seen
    total: float
    images_per_second: float

    @classmethod
    def of(cls, record: Record) -> "Status | None":
        """The status a record tells; None for a record without a position (an evaluation's)."""
        if not record.get("samples_total"):
            return None
        names = list(dict.fromkeys(str(record[key]) for key in ("stage", "trial") if record.get(key)))
        if "noise_magnitude" in record:
            names.append(f"M={record['noise_magnitude']:g}")
        speed = record.get("images_per_second", 0.0)
        return cls(" ".join(names), record["samples_seen"], record["samples_total"], speed)

    @property
    def finished(self) -> bool:
        """Whether the stage has seen all its samples."""
        return self.done >= self.total

    def figures(self) -> str:
        """Percent, images/s and time left as text."""
        left = (self.total - self.done) / self.images_per_second if self.images_per_second > 0 else math.nan
        return f"{self.done / self.total:4.0%} {self.images_per_second:8,.0f} images/s {clock(left):>8} left"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; '-' when unknown."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class LiveLines(Sink):
    """A sink that keeps one moving line per unfinished training run and leaves a still one per finished run."""

    def __init__(self, console: Console):
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}")
        self._progress = Progress(*columns, console=console, refresh_per_second=4)
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def write(self, record: Record) -> None:
        """Moves the line of the record's training run."""
        if not (status := Status.of(record)):
            return
        if status.title not in self._tasks:
            self._tasks[status.title] = self._progress.add_task(status.title, figures="")
        self._progress.update(
            self._tasks[status.title], completed=status.done, total=status.total, figures=status.figures()
        )
        if status.finished:
            self._progress.remove_task(self._tasks.pop(status.title))
            self._progress.console.print(f"{status.title} {status.figures()}", highlight=False)

    def close(self) -> None:
        """Ends the live display."""
        self._progress.stop()


class PlainLines(Sink):
    """A sink that prints a line per training run at most every `interval` seconds, and at its end."""

    def __init__(self, console: Console, interval: float = 10.0):
        self._console, self._interval = console, interval
        self._last: dict[str, float] = {}

    def write(self, record: Record) -> None:
        """Prints the record's position when it is due."""
        if not (status := Status.of(record)):
            return
        now = time.monotonic()
        if status.finished or now - self._last.get(status.title, -math.inf) >= self._interval:
            self._last[status.title] = now
            self._console.print(f"{status.title} {status.figures()}", highlight=False, soft_wrap=True)


def progress_lines(console: Console | None = None) -> LiveLines | PlainLines:
    """The display that fits the terminal (standard error by default)."""
    console = console or Console(stderr=True)
    return LiveLines(console) if console.is_terminal else PlainLines(console)
