"""Tables of a sweep: the best trials, what rungs let through, who copied whom; for the page and for the terminal."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from rich.table import Table

from .data import decimals, mean_sd
from .kinds import KINDS, figure_names, kind_of
from .scale import show
from .table import DASH
from .trials import SEED, SweepData, TrialRow, ranked, short_names

SHOWN, SHOWN_IN_TERMINAL = 20, 10  # trials
MOST_COPIES = 40
STATES = {"finished": "trained to the end", "stopped": "stopped early", "diverged": "diverged", "failed": "failed"}


@dataclass(frozen=True)
class Column:
    """One column: what it is called, and a trial's cell with its spread."""

    name: str
    below: str  # in small letters
    cell: Callable[[TrialRow], tuple[str, str]]


def counts(trials: Iterable[TrialRow]) -> str:
    """How many trials came to which end, in words."""
    found = Counter(trial.state for trial in trials)
    return ", ".join(f"{found[state]} {words}" for state, words in STATES.items() if found[state])


def ordered(trials: list[TrialRow]) -> list[TrialRow]:
    """The best first: finished ones by their settings, stopped ones by how far they came, then the others."""
    stopped = sorted((t for t in trials if t.state == "stopped"), key=lambda trial: (-trial.samples, trial.score))
    ended = [trial for group in ranked(trials) for trial in group]
    finished, diverged = ([t for t in ended if t.state == state] for state in ("finished", "diverged"))
    return [*finished, *stopped, *diverged, *(trial for trial in trials if trial.state == "failed")]


def of_each_run(sweep: SweepData, most: int) -> list[TrialRow]:
    """The best of every run, at most so many of each."""
    runs = dict.fromkeys(trial.run for trial in sweep.trials)
    return [trial for run in runs for trial in ordered([t for t in sweep.trials if t.run == run])[:most]]


def columns(sweep: SweepData) -> list[Column]:
    """What trials are judged by, settings, figures, and how long a trial was."""
    names, judged = short_names(sweep.keys), sweep.trials
    settings = [Column(names[key], "", lambda t, key=key: (_setting(t, key), "")) for key in sweep.keys]
    metrics = [_metric(judged, metric) for metric in sweep.metrics]
    figures = [_figure(judged, name) for name in figure_names(judged) if _shown(name)]
    samples = Column("Samples", "", lambda t: (f"{t.samples:,}", ""))
    return [*metrics, *settings, *figures, samples]  # a phone shows the first ones


def _shown(name: str) -> bool:
    kind = kind_of(name)
    return kind is None or bool(KINDS[kind].label)


def _setting(trial: TrialRow, key: str) -> str:
    return show(trial.settings[key]) if key in trial.settings else DASH


def _metric(trials: list[TrialRow], metric: str) -> Column:
    values = [t.value for t in trials if t.metric == metric and t.value is not None and math.isfinite(t.value)]
    digits = decimals(values, [mean_sd(values)[1]] if values else [])

    def cell(trial: TrialRow) -> tuple[str, str]:
        if trial.metric != metric or trial.value is None or not math.isfinite(trial.value):
            return ("" if trial.metric != metric or trial.state == "finished" else trial.state), ""
        return f"{trial.value:.{digits}f}", "stopped" if trial.state == "stopped" else ""

    return Column(metric, "higher is better" if trials[0].mode == "max" else "lower is better", cell)


def _figure(trials: list[TrialRow], name: str) -> Column:
    kind = kind_of(name)
    factor = KINDS[kind].factor if kind else 1
    spreads = [mean_sd(factor * v for v in trial.figures[name]) for trial in trials if name in trial.figures]
    digits = decimals(*zip(*spreads, strict=True))

    def cell(trial: TrialRow) -> tuple[str, str]:
        if name not in trial.figures:
            return "", ""
        mean, sd = mean_sd(factor * value for value in trial.figures[name])
        return f"{mean:.{digits}f}", "" if math.isnan(sd) else f"\N{PLUS-MINUS SIGN} {sd:.{digits}f}"

    return Column(KINDS[kind].heading, name, cell) if kind else Column(name, "", cell)


# ---- the best trials -------------------------------------------------------------------------------------------------


def trials_table(sweep: SweepData) -> str:
    """The best trials as HTML."""
    shown = columns(sweep)
    head = "".join(_heading(column) for column in shown)
    rows = "\n".join(_row(sweep, trial, shown) for trial in of_each_run(sweep, SHOWN))
    return table_html("Trials", f"<th scope='col'>Trial</th>{head}", rows)


def table_html(label: str, head: str, rows: str) -> str:
    """A table that scrolls by itself on a narrow screen."""
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{label}'>\n<table>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def _heading(column: Column) -> str:
    below = f"<small>{escape(column.below).replace('_', '_<wbr>')}</small>" if column.below else ""
    return f"<th scope='col'>{escape(column.name).replace('_', '_<wbr>')}{below}</th>"


def _row(sweep: SweepData, trial: TrialRow, shown: list[Column]) -> str:
    best = trial in sweep.best
    mark = f"<small>best{' settings' * (len(sweep.best) > 1)}</small>" if best else ""
    cells = "".join(_cell(*column.cell(trial)) for column in shown)
    title = " ".join(filter(None, [trial.run, trial.name]))
    return f"<tr{' class=best' * best}><th scope='row'>{escape(title)}{mark}</th>{cells}</tr>"


def _cell(value: str, spread: str) -> str:
    missing = "" if value and value not in STATES else " class='missing'"
    beside = f"<span class='sd'>{escape(spread)}</span>" if spread else ""
    return f"<td{missing}>{escape(value) or DASH}{beside}</td>"


def terminal_trials(sweep: SweepData) -> Table:
    """The best trials with their settings and what they are judged by, for the terminal's last lines."""
    names = short_names(sweep.keys)
    metrics = [_metric(sweep.trials, metric) for metric in sweep.metrics]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial")
    for heading in (*names.values(), *(column.name for column in metrics)):
        table.add_column(heading, justify="right")
    for trial in of_each_run(sweep, SHOWN_IN_TERMINAL):
        title = " ".join(filter(None, [trial.run, trial.name]))
        cells = [*(_setting(trial, key) for key in names), *(" ".join(column.cell(trial)) for column in metrics)]
        table.add_row(title, *cells, style="bold" if trial in sweep.best else None)
    return table


# ---- rungs and copies ------------------------------------------------------------------------------------------------


def rungs_table(sweep: SweepData) -> str:
    """How many trials came to each rung of asynchronous halving, and what became of them there."""
    ends = sorted({one.samples for one in sweep.outcomes})
    rows = []
    for end in ends:
        came = {one.trial for one in sweep.outcomes if one.samples == end}
        further = {one.trial for one in sweep.outcomes if one.samples > end} & came
        lost = {one.trial for one in sweep.outcomes if one.samples == end and not _good(one.value)}
        left = len(came - further - lost)
        cells = (f"{end:,}", len(came), len(further) or DASH, DASH if end == ends[-1] else left, len(lost) or DASH)
        rows.append(_plain_row(cells))
    head = _plain_head("Samples", "Came", "Went on", "Stopped", "Diverged or failed")
    return table_html("Rungs", head, "\n".join(rows))


def copies_table(sweep: SweepData) -> str:
    """Who went on with a copy of whom in a population."""
    copies = sorted((one for one in sweep.outcomes if one.source is not None), key=lambda one: (one.samples, one.trial))
    names, ends = short_names(sweep.keys), sorted({one.samples for one in sweep.outcomes})
    rows = [
        (
            f"{ends[ends.index(one.samples) - 1]:,}",
            f"trial-{one.trial:03d}",
            f"trial-{one.source:03d}",
            ", ".join(f"{names[key]} {show(value)}" for key, value in one.point.items() if key != SEED),
        )
        for one in copies
    ]
    head = _plain_head("Samples", "Trial", "went on as a copy of", "with")
    return table_html("Copies", head, "\n".join(map(_plain_row, rows[-MOST_COPIES:]))) if rows else ""


def _good(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _plain_head(*names: str) -> str:
    return "".join(f"<th scope='col'>{name}</th>" for name in names)


def _plain_row(cells: Iterable[object]) -> str:
    first, *rest = cells
    return f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{escape(str(cell))}</td>' for cell in rest)}</tr>"
