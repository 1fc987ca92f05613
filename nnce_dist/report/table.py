"""The table of samplers: which figures it shows, and its HTML and terminal forms."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby

from rich.table import Table

from .data import SamplerResult, best_tuned, decimals, find_metric, mean_sd

DASH = "\N{EN DASH}"
KINDS = {  # kind of figure -> heading, which way is better, factor of the shown value
    "fd": ("FD", "lower is better", 1),
    "class_accuracy": ("Class accuracy, %", "higher is better", 100),
    "kd": ("KD", "lower is better", 1),
    "precision": ("Precision", "higher is better", 1),
    "recall": ("Recall", "higher is better", 1),
}


@dataclass(frozen=True)
class Column:
    """A kind of figure as the table shows it."""

    kind: str
    metric: str  # the full name that most samplers have
    heading: str
    direction: str
    factor: float
    digits: int  # after the point

    def other_name(self, row: SamplerResult) -> str | None:
        """The name under which the row has this kind of figure, if it is not `metric`: another number of images."""
        return None if self.metric in row.figures else find_metric([row], self.kind)

    def show(self, row: SamplerResult) -> tuple[str, str]:
        """Mean and standard deviation; the latter is empty for a single draw. ("", "") when there is no figure."""
        values = row.figures.get(self.metric) or row.figures.get(self.other_name(row) or "")
        if not values:
            return "", ""
        mean, sd = (self.factor * value for value in mean_sd(values))
        return f"{mean:.{self.digits}f}", "" if math.isnan(sd) else f"{sd:.{self.digits}f}"


def columns(rows: list[SamplerResult]) -> list[Column]:
    """The figures that were measured, in the order of `KINDS`."""
    found = []
    for kind, (heading, direction, factor) in KINDS.items():
        metric = find_metric(rows, kind)
        if metric:
            measured = [
                mean_sd(factor * value for value in row.figures[metric]) for row in rows if metric in row.figures
            ]
            digits = decimals(*zip(*measured, strict=True))
            found.append(Column(kind, metric, heading, direction, factor, digits))
    return found


def best_row(rows: list[SamplerResult]) -> SamplerResult | None:
    """The row that the table points out."""
    distance = find_metric(rows, "fd")
    return best_tuned(rows, distance) if distance else None


def bodies(rows: list[SamplerResult]) -> Iterator[list[SamplerResult]]:
    """Neighbouring rows of one group, between which a line is drawn."""
    for _, group in groupby(rows, key=lambda row: (row.group, row.held)):
        yield list(group)


def terminal_table(rows: list[SamplerResult]) -> Table:
    """Frechet distance and class accuracy of every sampler, mean +- sd over draws, for the terminal's last lines."""
    shown, best = columns(rows)[:2], best_row(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sampler")
    for column in shown:
        table.add_column(f"{column.metric} %" if column.factor == 100 else column.metric, justify="right")
    table.add_column("evaluations", justify="right")
    for group in bodies(rows):
        for row in group:
            cost = "" if row.evaluations is None else str(row.evaluations)
            cells = [_terminal_cell(row, column) for column in shown]
            table.add_row(row.name, *cells, cost, style="bold" if row is best else None)
    return table


def _terminal_cell(row: SamplerResult, column: Column) -> str:
    mean, sd = column.show(row)
    other = column.other_name(row)
    return (f"{mean} +- {sd}" if sd else mean or row.note or "-") + (f" @{other.partition('@')[2]}" if other else "")


def html_table(rows: list[SamplerResult]) -> str:
    """The table with all its figures; empty when nothing was measured."""
    shown, best = columns(rows), best_row(rows)
    if not shown:
        return ""
    head = "".join(map(_heading, shown))
    groups = "\n".join(
        "<tbody>\n" + "\n".join(_row(row, shown, row is best) for row in group) + "\n</tbody>" for group in bodies(rows)
    )
    return (
        "<div class='scroll' tabindex='0' role='region' aria-label='Figures of every sampler'>\n<table>\n"
        f"<thead><tr><th scope='col'>Sampler</th>{head}<th scope='col'>Evaluations<small>per image</small></th></tr>"
        f"</thead>\n{groups}\n</table>\n</div>"
    )


def _heading(column: Column) -> str:
    name = escape(column.metric).replace("_", "_<wbr>")
    return f"<th scope='col'>{column.heading}<small>{name}</small><small>{column.direction}</small></th>"


def _row(row: SamplerResult, shown: list[Column], best: bool) -> str:
    cells = "".join(_cell(row, column) for column in shown)
    cost = DASH if row.evaluations is None else row.evaluations
    mark, kind = ("<small>best M</small>", " class='best'") if best else ("", "")
    return f"<tr{kind}><th scope='row'>{escape(row.name)}{mark}</th>{cells}<td>{cost}</td></tr>"


def _cell(row: SamplerResult, column: Column) -> str:
    mean, sd = column.show(row)
    other = column.other_name(row)
    if not mean:
        return f"<td class='missing'>{escape(row.note) or DASH}</td>"
    beside = f"@{other.partition('@')[2]}" if other else f"\N{PLUS-MINUS SIGN} {sd}" if sd else ""
    return f"<td>{mean}<span class='sd'>{escape(beside)}</span></td>"
