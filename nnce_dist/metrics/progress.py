"""What a person sees of a run while it goes on: a table on a terminal, plain lines where there is none."""

import math
import time

from rich.console import Console

from .names import Record
from .recorder import Sink
from .status import TRAINED, TRAINING, Status, Statuses, name_of
from .table import LiveTable


class PlainLines(Sink):
    """A sink that prints a line per job at most every `interval` seconds, and whenever something begins or ends."""

    def __init__(self, console: Console, metric: str = "", interval: float = 10.0):
        self._console, self._metric, self._interval = console, metric, interval
        self._jobs, self._last = Statuses(metric), dict[str, float]()

    def write(self, record: Record) -> None:
        """Prints what the record tells when it is due."""
        before = self._jobs.get(name_of(record))
        if not (status := self._jobs.take(record)):
            return
        judged = before is None or before.figure != status.figure
        now = time.monotonic()
        news = status.finished or status.state != TRAINING
        if news or now - self._last.get(status.job, -math.inf) >= self._interval:
            self._last[status.job] = now
            self._console.print(line(status, self._metric if judged else None), highlight=False, soft_wrap=True)


def line(status: Status, metric: str | None) -> str:
    """One line about a job: its settings, percent, samples/s and time left, or what it does or became of it.

    With the value of the metric, if one is given and the value known.
    """
    if status.state in (TRAINING, TRAINED):
        speed = f"{status.done / status.total:4.0%} {status.per_second:8,.0f} samples/s"
        text = f"{speed} {status.left:>8} left" if status.state == TRAINING else speed
    else:
        text = status.state
    figure = f", {metric} {status.figure:.4g}" if metric and status.figure is not None else ""
    return " ".join(filter(None, (status.job, status.settings, text))) + figure


def progress_lines(console: Console | None = None, metric: str = "") -> LiveTable | PlainLines:
    """The display that fits the terminal (standard error by default)."""
    console = console or Console(stderr=True)
    return LiveTable(console, metric) if console.is_terminal else PlainLines(console, metric)
