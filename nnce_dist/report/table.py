"""The table of samplers: which figures it shows, and its HTML and terminal forms."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby

from rich.table import Table

from .data import SamplerResult, best_tuned, decimals, find_metric, mean_sd
from .kinds import KINDS, Kind, measures

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A kind of figure as the table shows it."""

    name: str  # of the kind
    kind: Kind
    metric: str  # the full name that most samplers have
    digits: int  # after the point

    def other_name(self, row: SamplerResult) -> str | None:
        """The name under which the row has this kind of figure, if it is not `metric`: another number of images."""
        return None if self.metric in row.figures else find_metric([row], self.name)

    def show(self, row: SamplerResult) -> tuple[str, str]:
        """Mean and standard deviation; the latter is empty for a single draw. ("", "") when there is no figure."""
        values = row.figures.get(self.metric) or row.figures.get(self.other_name(row) or "")
        if not values:
            return "", ""
        mean, sd = (self.kind.factor * value for value in mean_sd(values))
        return f"{mean:.{self.digits}f}", "" if math.isnan(sd) else f"{sd:.{self.digits}f}"


def columns(rows: list[SamplerResult]) -> list[Column]:
    """The figures that were measured, in the order of `KINDS`."""
    found = []
    for name, kind in KINDS.items():
        metric = find_metric(rows, name)
        if metric:
            measured = [
                mean_sd(kind.factor * value for value in row.figures[metric]) for row in rows if metric in row.figures
            ]
            digits = decimals(*zip(*measured, strict=True))
            found.append(Column(name, kind, metric, digits))
    return found


def best_row(rows: list[SamplerResult]) -> SamplerResult | None:
    """The row that the table points out."""
    found = measures(rows)
    return best_tuned(rows, found[0].metric) if found else None


def bodies(rows: list[SamplerResult]) -> Iterator[list[SamplerResult]]:
    """Neighbouring rows of one group, between which a line is drawn."""
    for _, group in groupby(rows, key=lambda row: (row.group, row.held)):
        yield list(group)


def has_costs(rows: list[SamplerResult]) -> bool:
    """Whether the rows differ in what a sample costs."""
    return any(row.evaluations is not None for row in rows)


def terminal_table(rows: list[SamplerResult], thing: str = "Sampler") -> Table:
    """The two most important figures of every row, mean +- sd, for the terminal's last lines."""
    shown, best, costs = columns(rows)[:2], best_row(rows), has_costs(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(thing.lower())
    for column in shown:
        table.add_column(f"{column.metric} %" if column.kind.factor == 100 else column.metric, justify="right")
    if costs:
        table.add_column("evaluations", justify="right")
    for group in bodies(rows):
        for row in group:
            cells = [row.name, *(_terminal_cell(row, column) for column in shown)]
            if costs:
                cells.append("" if row.evaluations is None else str(row.evaluations))
            table.add_row(*cells, style="bold" if row is best else None)
    return table


def _terminal_cell(row: SamplerResult, column: Column) -> str:
    mean, sd = column.show(row)
    other = column.other_name(row)
    return (f"{mean} +- {sd}" if sd else mean or row.note or "-") + (f" @{other.partition('@')[2]}" if other else "")


def html_table(rows: list[SamplerResult], thing: str = "Sampler") -> str:
    """The table with all its figures; empty when nothing was measured."""
    shown, best, costs = columns(rows), best_row(rows), has_costs(rows)
    if not shown:
        return ""
    head = "".join(map(_heading, shown))
    groups = "\n".join(
        "<tbody>\n" + "\n".join(_row(row, shown, row is best, costs) for row in group) + "\n</tbody>"
        for group in bodies(rows)
    )
    head = f"<thead><tr><th scope='col'>{thing}</th>{head}{_COST if costs else ''}</tr></thead>"
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='Figures of every {thing.lower()}'>\n<table>\n"
        f"{head}\n{groups}\n</table>\n</div>"
    )


_COST = "<th scope='col'>Evaluations<small>per image</small></th>"


def _heading(column: Column) -> str:
    name = escape(column.metric).replace("_", "_<wbr>")
    return f"<th scope='col'>{column.kind.heading}<small>{name}</small><small>{column.kind.direction}</small></th>"


def _row(row: SamplerResult, shown: list[Column], best: bool, costs: bool) -> str:
    cells = "".join(_cell(row, column) for column in shown)
    cost = f"<td>{DASH if row.evaluations is None else row.evaluations}</td>" if costs else ""
    mark, kind = ("<small>best</small>", " class='best'") if best else ("", "")
    return f"<tr{kind}><th scope='row'>{escape(row.name)}{mark}</th>{cells}{cost}</tr>"


def _cell(row: SamplerResult, column: Column) -> str:
    mean, sd = column.show(row)
    other = column.other_name(row)
    if not mean:
        return f"<td class='missing'>{escape(row.note) or DASH}</td>"
    beside = f"@{other.partition('@')[2]}" if other else f"\N{PLUS-MINUS SIGN} {sd}" if sd else ""
    return f"<td>{mean}<span class='sd'>{escape(beside)}</span></td>"
