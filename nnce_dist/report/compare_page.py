"""The page that shows several runs beside each other: what differs between them, their trials, their pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from . import sweep_page
from .page import frame, note, section, write_page
from .scale import show
from .sweep_table import counts, table_html
from .trials import SweepData, TrialRow, best_of, mean_score

FACTS = ("hardware", "git_commit", "python")  # of a manifest
MOST_SETTINGS = 8  # that differ between runs, shown beside each trial; more are in the table of the runs alone
APART = (
    "Figures compare where they have the same name; under different names they stand in different columns. Runs that "
    "differ in the data, in the evaluation or in the machine may differ for that."
)
ALIKE = "Apart from what they sweep the runs have the same settings."


@dataclass(frozen=True)
class RunFacts:
    """What the page says about one run."""

    name: str
    settings: Mapping[str, Any]  # those in which the runs differ
    manifest: Mapping[str, Any]


def write_comparison(runs: list[RunFacts], sweep: SweepData, out: Path) -> Path:
    """Writes `compare.html` to the folder `out`, and its pictures to `figures/` in it; returns its path."""
    pictures = out / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    sections = [section("Runs", note(APART), _runs(runs), _commands(runs)), *sweep_page.sections(sweep, pictures)]
    return write_page(out / "compare.html", frame(", ".join(run.name for run in runs), lead(runs, sweep), "", sections))


def lead(runs: list[RunFacts], sweep: SweepData) -> str:
    """What the runs reached, in a sentence."""
    reached = []
    for run in runs:
        best = best_of(trial for trial in sweep.best if trial.run == run.name)
        reached.append(f"{run.name} {_reached(best) if best else 'nothing'}")
    total = f"{len(sweep.trials)} trials: {counts(sweep.trials)}."
    return f"The best settings of each run reach: {'; '.join(reached)}. {total}"


def _reached(best: list[TrialRow]) -> str:
    first = best[0]
    value = mean_score(best) * (1 if first.mode == "min" else -1)
    return f"{show(value)} ({first.metric}, {f'mean over {len(best)} trials' if len(best) > 1 else first.name})"


def _runs(runs: list[RunFacts]) -> str:
    """A column for each run; a row for each setting in which they differ, and for what they were made with."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = [(key, [show(run.settings[key]) for run in runs]) for key in keys]
    facts = [(key.replace("_", " "), [str(run.manifest.get(key, "")) for run in runs]) for key in FACTS]
    rows += [(name, values) for name, values in facts if len(set(values)) > 1]
    head = "".join(f"<th scope='col'>{escape(word)}</th>" for word in ("Differs in", *(run.name for run in runs)))
    body = "\n".join(
        f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for name, values in rows
    )
    return table_html("Runs", head, body) if rows else note(ALIKE)


def _commands(runs: list[RunFacts]) -> str:
    told = ((run.name, str(run.manifest.get("command", ""))) for run in runs)
    return "\n".join(f"<h3>{escape(name)}</h3>\n<pre><code>{escape(line)}</code></pre>" for name, line in told)
