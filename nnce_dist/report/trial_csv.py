"""Trials as comma-separated values, for pandas and for spreadsheets: a row each, a column per setting and figure."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from .kinds import figure_names
from .trials import TrialRow


def to_csv(trials: Sequence[TrialRow]) -> str:
    """The table; columns of settings have their dotted keys, those of figures (means over draws) their full names."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    metrics, figures = list(dict.fromkeys(trial.metric for trial in trials)), figure_names(trials)
    rows = [_row(trial, keys, metrics, figures) for trial in trials]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _row(trial: TrialRow, keys: list[str], metrics: list[str], figures: list[str]) -> dict[str, Any]:
    return {
        **({"run": trial.run} if trial.run else {}),
        **{"name": trial.name, "stage": trial.stage, "state": trial.state, "samples": trial.samples},
        **{key: trial.settings.get(key) for key in keys},
        **{metric: trial.value if trial.metric == metric else None for metric in metrics},
        **({} if "selection" in metrics else {"selection": trial.selection}),
        **{**{name: trial.mean(name) for name in figures}, "seconds": trial.seconds, "error": trial.error},
    }


def _cell(value: Any) -> Any:
    """A value as both read it: NaN is an empty cell, infinities are words, truth is a word in small letters."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    return str(value).lower() if isinstance(value, bool) else value
