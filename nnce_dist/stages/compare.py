"""Several runs beside each other: `nnce compare RUN RUN ...`."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..config.load import differences, stored, to_dict
from ..config.schema import Config
from ..data.files import FileStore
from ..report.compare_page import MOST_SETTINGS, RunFacts, write_comparison
from ..report.kinds import figure_names
from ..report.sweep_table import terminal_trials
from ..report.trial_csv import to_csv
from ..report.trials import SEED, SweepData, TrialRow
from .folder import decides
from .goal import SELECTION
from .report import RESULTS
from .sweep_results import at, sweep_data, trial_row

OF_NO_TRIAL = ("sweep.", "run.name", "run.stages")  # settings of a run that no trial has


@dataclass(frozen=True)
class Run:
    """A run as it is on disk."""

    root: Path
    name: str
    config: Config
    manifest: dict
    sweep: SweepData


def compare(folders: list[Path], out: Path, console: Console) -> Path:
    """Writes compare.html, compare.csv and the figures to `out`, and shows the table; returns the page's path.

    Raises ValueError for a folder that is no run, or one that has not come to its end.
    """
    facts, sweep = together(open_runs(folders))
    page = write_comparison(facts, sweep, out)
    FileStore().put(str(out / "compare.csv"), to_csv(sweep.trials).encode())
    console.print(terminal_trials(sweep))
    console.print(f"comparison: {page}", soft_wrap=True)
    return page


def together(runs: list[Run]) -> tuple[list[RunFacts], SweepData]:
    """What is said of each run, and the trials of all; few settings in which runs differ become their trials' own."""
    trees, metrics = [to_dict(run.config) for run in runs], _metrics(runs)
    keys = differing(trees)
    settings = [{key: at(tree, key) for key in keys} for tree in trees]
    beside = dict.fromkeys([*(keys if len(keys) <= MOST_SETTINGS else []), *(k for r in runs for k in r.sweep.keys)])
    trials, best = [], []
    for run, tree in zip(runs, trees, strict=True):
        own, of_run = {key: at(tree, key) for key in beside}, {"run": run.name, "repeated": keys == [SEED]}
        there = [dataclasses.replace(_of_run(row, own, metrics[run.name]), **of_run) for row in run.sweep.trials]
        rows = {row.name: row for row in there}
        trials += rows.values()
        best += [rows[one.name] for one in run.sweep.best]
    logarithmic = frozenset(key for run in runs for key in run.sweep.logarithmic)
    facts = [RunFacts(run.name, differs, run.manifest) for run, differs in zip(runs, settings, strict=True)]
    return facts, SweepData(trials, best, logarithmic)


def open_run(root: Path) -> Run:
    """A run's configuration, manifest and trials. Raises ValueError saying what its folder lacks."""
    if not (root / "config.yaml").is_file():
        raise ValueError(f"{root}: no run; give the folder of one, which has a config.yaml")
    config = stored(root / "config.yaml")
    if not (root / RESULTS).is_file():
        raise ValueError(f"{root}: has not come to its end; start its command again, it goes on where it was")
    try:
        results, manifest = (json.loads((root / name).read_text()) for name in (RESULTS, "manifest.json"))
    except ValueError as error:
        raise ValueError(
            f"{root}: {RESULTS} or manifest.json cannot be read ({error}); start its command again"
        ) from None
    sweep = sweep_data(config, root, results)
    generators = [one for one in results if one["stage"] == "one_step" and "trial" not in one]
    more = [trial_row(config, root, one, {}, SELECTION) for one in generators]
    if not sweep.trials + more:
        raise ValueError(f"{root}: has no trials to compare")
    return Run(root, config.run.name, config, manifest, dataclasses.replace(sweep, trials=sweep.trials + more))


def open_runs(folders: list[Path]) -> list[Run]:
    """Each run once; those of the same name are told apart by their folders."""
    runs = [open_run(folder) for folder in dict.fromkeys(folder.resolve() for folder in folders)]
    if len({run.name for run in runs}) == len(runs):
        return runs
    common = os.path.commonpath([run.root for run in runs])
    return [dataclasses.replace(run, name=str(run.root.relative_to(common))) for run in runs]


def differing(configurations: list[dict]) -> list[str]:
    """The settings in which any of them differ, those left out that decide nothing or that no trial has."""
    first, *others = configurations
    keys = dict.fromkeys(key for other in others for key, *_ in differences(first, other))
    return [key for key in keys if decides(key) and not key.startswith(OF_NO_TRIAL)]


def _metrics(runs: list[Run]) -> dict[str, str]:
    """What each run's trials are judged by, in words that are equal only where the figures behind it have one name."""
    names = {run.name: next(iter(figure_names(run.sweep.trials)), "") for run in runs}
    if len(set(names.values())) == 1:
        return dict.fromkeys(names, "")
    return {run: f" ({name})" for run, name in names.items()}


def _of_run(row: TrialRow, settings: dict, apart: str) -> TrialRow:
    """The trial with the settings of its run that it did not vary, and the metric's own name."""
    metric = row.metric + (apart if row.metric == SELECTION else "")
    return dataclasses.replace(row, settings=settings | dict(row.settings), metric=metric)
