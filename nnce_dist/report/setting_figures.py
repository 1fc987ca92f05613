"""Pictures of a sweep: what trials are compared by, against each of their settings."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from .data import mean_sd
from .figures import MOST_NAMES, Panel, Theme, distance_scale, step_colour
from .kinds import KINDS, kind_of, measured_by
from .scale import Scale, scale
from .trials import SEED, State, SweepData, TrialRow, by_settings, others, short_names

MOST_LINES = 4  # curves of different other settings that one panel joins by lines
LONG = 24  # letters in a name that leave room for no other beside it
LEAST = 3  # trials with a figure that a curve of it takes
Get = Callable[[TrialRow], float | None]


def file_name(*words: str) -> str:
    """Words as the name of a PNG file."""
    return "_by_".join(re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_") for word in words)


@dataclass(frozen=True)
class View:
    """What trials are compared by against one of their settings."""

    sweep: SweepData
    key: str
    axis: Scale
    name: str  # of the metric or figure
    get: Get

    @property
    def short(self) -> str:
        """The setting as the reader sees it."""
        return short_names(self.sweep.keys)[self.key]

    @property
    def trials(self) -> list[TrialRow]:
        """Those that have the setting."""
        return [trial for trial in self.sweep.trials if self.key in trial.settings]

    def measured(self, state: State) -> list[TrialRow]:
        """Those in a state that have a value that can be drawn."""
        return [trial for trial in self.trials if trial.state == state and finite(self.get(trial))]

    def places(self, trials: list[TrialRow]) -> list[float]:
        """Where trials lie along the axis."""
        return [self.axis.at(trial.settings[self.key]) for trial in trials]

    def heights(self, trials: list[TrialRow]) -> list[float]:
        """What trials are compared by."""
        return [self.get(trial) for trial in trials]


def setting_panels(sweep: SweepData) -> list[Panel]:
    """What trials are compared by against each setting; words and truths against the metric alone."""
    found = []
    for key in sweep.keys:
        axis = setting_scale(sweep, key)
        if key != SEED and len(axis.values) > 1:
            views = [View(sweep, key, axis, *by) for by in measured_by(sweep.trials)]
            found += [_panel(view) for view in views if _worth(view)]
    return found


def setting_scale(sweep: SweepData, key: str) -> Scale:
    """The scale of a setting's values."""
    values = (trial.settings[key] for trial in sweep.trials if key in trial.settings)
    return scale(values, key in sweep.logarithmic)


def _worth(view: View) -> bool:
    """Whether a picture says more than the table: words are for the metric alone, two dots make no curve."""
    if view.name in view.sweep.metrics:
        return True
    return view.axis.kind != "words" and len(view.measured("finished")) >= LEAST


def _panel(view: View) -> Panel:
    marks = {
        "Large dots are means over seeds, bars one standard deviation, small dots the seeds": SEED in view.sweep.keys,
        "hollow: stopped early, at its last value": view.measured("stopped"),
        "crosses at the top: diverged or failed": any(lost(trial) for trial in view.trials),
        "star: the best settings": view.sweep.best,
    }
    kind, maximum = kind_of(view.name), view.trials[0].mode == "max"
    better = KINDS[kind].direction if kind else f"{'higher' if maximum else 'lower'} is better"
    caption = "; ".join([f"{view.name} by {view.key}, {better}", *(words for words, there in marks.items() if there)])
    draw = partial(draw_setting, view=view)
    return Panel(file_name(view.name, view.short), f"{view.name} by {view.short}", f"{caption}.", draw)


def finite(value: float | None) -> bool:
    """Whether there is a value that can be drawn."""
    return value is not None and math.isfinite(value)


def lost(trial: TrialRow) -> bool:
    """Whether the trial came to nothing."""
    return trial.state in ("diverged", "failed")


def draw_setting(axes: Axes, theme: Theme, view: View) -> None:
    """Mean, spread and seeds at each value of one setting; lines join trials whose other settings are equal."""
    finished, stopped = view.measured("finished"), view.measured("stopped")
    lines = series(finished, view.key)
    for place, (label, group) in enumerate(lines.items()):
        _draw_series(axes, view, group, step_colour(place, len(lines), theme), label)
    hollow = {"markersize": 4.5, "markerfacecolor": "none", "color": theme.faint}
    axes.plot(view.places(stopped), view.heights(stopped), "o", **hollow)
    nothing = view.places([trial for trial in view.trials if lost(trial)])
    top = blended_transform_factory(axes.transData, axes.transAxes)
    axes.plot(nothing, [0.985] * len(nothing), "x", markersize=6, color=theme.text, transform=top)
    for best in by_settings(trial for trial in finished if trial in view.sweep.best).values():
        height = mean_sd(view.heights(best))[0]
        axes.plot(view.places(best)[0], height, "*", markersize=13, color=theme.held, zorder=5)
    if finished or stopped:
        distance_scale(axes, view.name, view.heights(finished + stopped))
    _setting_axis(axes, view)
    if 1 < len(lines) <= MOST_NAMES and all(lines):
        columns = 1 if max(map(len, lines)) > LONG else 2
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize=9, handletextpad=0.3)


def series(trials: list[TrialRow], key: str) -> dict[str, list[TrialRow]]:
    """Trials by the run and the other settings that they share, named by what tells them apart.

    Where these are too many for lines, or a line would be a dot, trials are told apart by their run alone.
    """
    groups: dict[tuple, list[TrialRow]] = {}
    for trial in trials:
        groups.setdefault((trial.apart, others(trial, key, SEED)), []).append(trial)
    runs = dict.fromkeys(trial.apart for trial in trials)
    single = any(len({str(trial.settings[key]) for trial in group}) < 2 for group in groups.values())
    if single or len(groups) > max(MOST_LINES, len(runs)):
        return {run: [trial for trial in trials if trial.apart == run] for run in runs}
    names = short_names(dict.fromkeys(k for trial in trials for k in trial.settings))
    shared = set.intersection(*(set(rest) for _, rest in groups)) if groups else set()

    def label(run: str, rest: tuple) -> str:
        return ", ".join(filter(None, [run, *(f"{names[k]} {v}" for k, v in rest if (k, v) not in shared)]))

    return {label(*group): members for group, members in groups.items()}


def _draw_series(axes: Axes, view: View, trials: list[TrialRow], colour: str | tuple, label: str) -> None:
    groups = sorted(by_settings(trials).values(), key=lambda group: view.places(group)[0])
    at = [view.places(group)[0] for group in groups]
    means, sds = zip(*(mean_sd(view.heights(group)) for group in groups), strict=True)
    alike = len({others(trial, view.key, SEED) for trial in trials}) == 1
    style = {"marker": "o", "markersize": 5.5, "linewidth": 1.5, "capsize": 3, "linestyle": "-" if alike else ""}
    axes.errorbar(at, means, [0 if math.isnan(sd) else sd for sd in sds], color=colour, label=label or None, **style)
    for x, group in zip(at, groups, strict=True):
        if len(group) > 1:
            axes.plot([x] * len(group), view.heights(group), ".", color=colour, markersize=3.5, alpha=0.7)


def _setting_axis(axes: Axes, view: View) -> None:
    places, words = zip(*view.axis.ticks(), strict=True)
    axes.set_xticks(places, words)
    low, high = view.axis.limits
    margin = 0.5 if view.axis.kind == "words" else 0.06 * ((high - low) or 1)
    axes.set_xlim(low - margin, high + margin)
    axes.set_xlabel(view.short)
