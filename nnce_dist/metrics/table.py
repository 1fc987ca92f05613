"""The jobs of a run in one table that is updated in place, on a terminal."""

from collections import Counter

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .names import Record
from .recorder import Sink
from .status import Status, Statuses

_AROUND = 4  # lines of a screen that hold no job: the table's head, the counts, the prompt


class LiveTable(Sink):
    """Shows the jobs that are at work and, while the screen has room, those that ended last; then counts all.

    `metric` is what trials are judged by; it has a column once it is known of one.
    """

    def __init__(self, console: Console, metric: str = ""):
        self._console, self._metric = console, metric
        self._jobs = Statuses(metric)
        self._live = Live(get_renderable=self._screen, console=console, refresh_per_second=4)
        self._live.start()

    def write(self, record: Record) -> None:
        """Takes in what a record tells of a job."""
        self._jobs.take(record)

    def close(self) -> None:
        """Leaves the table as it is now."""
        self._live.stop()

    def _screen(self) -> Group:
        jobs = list(self._jobs.values())
        ordered = [job for job in jobs if not job.finished] + [job for job in reversed(jobs) if job.finished]
        shown = ordered[: max(self._console.height - _AROUND, 1)]
        counts = Counter(job.state_in_short for job in ordered)
        summary = f"{len(ordered):,} jobs: {', '.join(f'{count:,} {state}' for state, count in counts.items())}"
        return Group(self._table(shown), Text(summary, style="dim", no_wrap=True)) if ordered else Group()

    def _table(self, jobs: list[Status]) -> Table:
        judged = any(job.figure is not None for job in self._jobs.copy().values())
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("trial", no_wrap=True)
        table.add_column("settings", no_wrap=True, overflow="ellipsis", max_width=3 * self._console.width // 10)
        table.add_column("samples", justify="right", no_wrap=True)
        if judged:
            table.add_column(self._metric.rpartition("/")[2], justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True, overflow="ellipsis", max_width=2 * self._console.width // 10)
        table.add_column("left", justify="right", no_wrap=True)
        for job in jobs:
            figure = [f"{job.figure:.4g}" if job.figure is not None else ""] if judged else []
            style = "dim" if job.finished else None
            table.add_row(job.trial, job.settings, _samples(job), *figure, job.state, job.left, style=style)
        return table


def _samples(job: Status) -> str:
    return f"{job.done:,} {job.done / job.total:4.0%}" if job.total > 0 else ""
