"""From the results of a sweep's trials to what its report shows; the same for lists of M and for spaces."""

import math
from functools import reduce
from pathlib import Path
from typing import Any

from ..config.load import differences, to_dict
from ..config.schema import Config
from ..config.sweep_checks import space, trials_stage
from ..metrics.jsonl import training_records
from ..report.trials import M, SweepData, TrialRow, best_of
from ..sweep.history import History
from . import density_ratio_run
from .folder import job_folder
from .job import DIVERGED
from .search import HISTORY, strategy
from .trials import AUTO, best, sweep_trials


def sweep_data(config: Config, root: Path, results: list[dict]) -> SweepData:
    """The trials of a run, and which of them did best; without trials for a run that sweeps nothing."""
    if not config.sweep.space:
        rows, names = _listed(config, root, results), _best_names(config, results)
        return SweepData(rows, sorted((row for row in rows if row.name in names), key=lambda row: row.score))
    drawn = [result for result in results if "trial" in result]
    rows = [trial_row(config, root, result, result["point"], config.sweep.metric) for result in drawn]
    return SweepData(
        rows,
        best_of(rows),
        frozenset(key for key, what in space(config).items() if what.kind == "loguniform"),
        config.sweep.strategy,
        list(History(root / HISTORY, config.sweep.mode).asked_for(strategy(config)).values()),
    )


def trial_row(config: Config, root: Path, result: dict, settings: dict, metric: str) -> TrialRow:
    """What a report shows of one result."""
    records = training_records(job_folder(root, result["stage"], result["name"]))
    return TrialRow(
        result["name"],
        _state(result),
        settings,
        metric,
        config.sweep.mode if config.sweep.space else "min",
        _value(result),
        result.get("figures", {}),
        result.get("selection"),
        result.get("samples") or (int(records[-1]["samples_seen"]) if records else 0),
        result.get("seconds"),
        result.get("error", ""),
        records=records,
        stage=result["stage"],
    )


def _value(result: dict) -> float | None:
    """What the trial is judged by, which for a list of M is the selection figure."""
    return result["value"] if "trial" in result else result.get("selection")


def _state(result: dict) -> str:
    if "error" in result:
        return "failed"
    if result.get("note") == DIVERGED or not math.isfinite(_value(result) or 0):
        return "diverged"
    return "stopped" if result.get("stopped") else "finished"


# ---- lists of M ------------------------------------------------------------------------------------------------------


def _listed(config: Config, root: Path, results: list[dict]) -> list[TrialRow]:
    """A row for each trial that has a result."""
    configurations = _configurations(config)
    trained = [one for one in results if one["stage"] == trials_stage(config) and one["name"] in configurations]
    plain, found = to_dict(config), {one["name"]: to_dict(configurations[one["name"]]) for one in trained}
    changed = dict.fromkeys([M, *(key for one in found.values() for key, *_ in differences(plain, one))])
    settings = {name: {key: at(one, key) for key in changed} for name, one in found.items()}
    if config.objective.schedule.kind == AUTO:
        settings = {name: one | {M: AUTO} for name, one in settings.items()}
    return [trial_row(config, root, one, settings[one["name"]], "selection") for one in trained]


def _configurations(config: Config) -> dict[str, Config]:
    if density_ratio_run.chosen(config):
        return {name: settings for _, name, settings in density_ratio_run.trials(config)}
    return {trial.name: trial.configuration(config) for trial in sweep_trials(config)}


def at(tree: dict, key: str) -> Any:
    """The value of a dotted key in plain nested dictionaries."""
    return reduce(dict.__getitem__, key.split("."), tree)


def _best_names(config: Config, results: list[dict]) -> list[str]:
    if density_ratio_run.chosen(config):
        trial = density_ratio_run.best_trial(config, results)
        return [one["name"] for one in density_ratio_run.by_trial(config, results)[trial]] if trial else []
    chosen = best([one for one in results if one["stage"] == "ten_step"])
    return [chosen["name"]] if chosen else []
