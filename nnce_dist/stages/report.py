"""From the results of a run's jobs to its report, its table of trials, and its best trial as a preset."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from ..config.load import to_yaml
from ..config.schema import Config
from ..data.files import FileStore
from ..report.data import Curve, ReportData, SamplerResult
from ..report.html import write_report
from ..report.subject import RATIOS, SAMPLERS
from ..report.sweep_table import counts, terminal_trials
from ..report.table import terminal_table
from ..report.trial_csv import to_csv
from ..report.trials import SweepData
from ..training.checkpoint import write_json
from . import best as best_file
from . import density_ratio_run
from .folder import errors
from .sampler_rows import curves, rows
from .sweep_results import sweep_data

RESULTS = "results.json"  # what `nnce compare` reads
CHOSEN = "The best trial was chosen by {metric}, on draws that none of these figures saw."


def keep(config: Config, root: Path, results: list[dict]) -> SweepData:
    """Writes what others read: all results, the trials as a table, the best one as a preset."""
    sweep = sweep_data(config, root, results)
    write_json(root / RESULTS, results)
    if sweep.trials:
        FileStore().put(str(root / "sweep.csv"), to_csv(sweep.trials).encode())
    if sweep.best:
        FileStore().put(str(root / best_file.FILE), best_file.best_yaml(config, root, sweep).encode())
    return sweep


def write(config: Config, root: Path, results: list[dict], seconds: float, console: Console) -> Path:
    """Writes report.html, sweep.csv and best.yaml; ends the terminal's output with the table and the report's path."""
    sweep = keep(config, root, results)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest |= {"seed": config.run.seed, "total_seconds": seconds, "stage_seconds": _spent(results)}
    subject = RATIOS if density_ratio_run.chosen(config) else SAMPLERS
    if config.sweep.space:
        subject = dataclasses.replace(subject, chosen_apart=CHOSEN.format(metric=config.sweep.metric))
    table, learning = contents(config, root, results, sweep)
    shown = sweep if config.sweep.space else None
    data = ReportData(config.run.name, table, learning, manifest, to_yaml(config), errors(results), subject, shown)
    page = write_report(data, root)
    _tell(data, root, console)
    console.print(f"report: {page}", soft_wrap=True)
    return page


def contents(
    config: Config, root: Path, results: list[dict], sweep: SweepData
) -> tuple[list[SamplerResult], list[Curve]]:
    """Rows and curves; those of the trials of a space are in the sweep, but for the best, which has a row as well."""
    if not density_ratio_run.chosen(config):
        others = [result for result in results if "trial" not in result]
        best_trials = [result for result in results if "trial" in result and result["name"] == _first(sweep)]
        return rows(config, root, others, best_trials), curves(root, others)
    return ([], []) if config.sweep.space else density_ratio_run.contents(config, root, results)


def _first(sweep: SweepData) -> str | None:
    return sweep.best[0].name if sweep.best else None


def _spent(results: list[dict]) -> dict[str, float]:
    """Seconds of each job; those of the trials of a space together."""
    spent: dict[str, float] = {}
    for result in results:
        name = f"{result['stage']}/{'all trials' if 'trial' in result else result['name']}"
        spent[name] = spent.get(name, 0.0) + result.get("seconds", 0.0)
    return {name: seconds for name, seconds in spent.items() if seconds}


def _tell(data: ReportData, root: Path, console: Console) -> None:
    """The table, and beside it where the rest is."""
    if data.rows or not data.sweep:
        console.print(terminal_table(data.rows, data.subject.thing))
    if data.sweep:
        console.print(counts(data.sweep.trials))
        console.print(terminal_trials(data.sweep))
        console.print(f"all trials: {root / 'sweep.csv'}", soft_wrap=True)
    if (root / best_file.FILE).exists():
        console.print(f"best: preset={root / best_file.FILE}", soft_wrap=True)
