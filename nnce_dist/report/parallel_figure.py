"""The picture of all settings of a sweep at once: parallel coordinates."""

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from .figures import Panel, Theme, share_colour
from .scale import Scale, scale
from .setting_figures import file_name, finite, lost, setting_scale
from .trials import SEED, SweepData, TrialRow, short_names


def parallel_panel(sweep: SweepData, metric: str) -> Panel | None:
    """A line for each trial through its settings to its metric; nothing where only one setting varies."""
    keys = [key for key in sweep.keys if key != SEED and len(setting_scale(sweep, key).values) > 1]
    if len(keys) < 2 or not any(_ends(trial, metric) for trial in sweep.trials):
        return None
    caption = (
        f"A line is a trial, from its settings to its {metric}; its colour follows that, the best settings are thick. "
        "Dashed: stopped early, a value that does not compare; dotted: diverged or failed; they end before the metric."
    )
    size = (max(4.6, 1.1 * (len(keys) + 1)), 3.2)
    draw = lambda axes, theme: draw_parallel(axes, theme, sweep, keys, metric)  # noqa: E731
    return Panel(file_name("parallel_coordinates", metric), "All settings at once", caption, draw, size)


def _ends(trial: TrialRow, metric: str) -> bool:
    return trial.state == "finished" and trial.metric == metric and finite(trial.value)


def draw_parallel(axes: Axes, theme: Theme, sweep: SweepData, keys: list[str], metric: str) -> None:
    """Parallel coordinates: an upright axis for each setting, the last one for the metric."""
    finished = sorted((t for t in sweep.trials if _ends(t, metric)), key=lambda trial: trial.score, reverse=True)
    columns = [*(setting_scale(sweep, key) for key in keys), scale(trial.value for trial in finished)]
    for trial in sweep.trials:
        if trial not in finished:
            style = ":" if lost(trial) else "--"
            axes.plot(*_path(trial, keys, columns), style, color=theme.faint, linewidth=0.9, alpha=0.7)
    for trial in finished:
        best = trial in sweep.best
        share = columns[-1].share(trial.value)
        style = {"color": theme.held if best else share_colour(share, theme), "linewidth": 2.6 if best else 1.1}
        x, y = _path(trial, keys, columns)
        axes.plot([*x, len(keys)], [*y, share], **style)
    names = short_names(sweep.keys)
    _upright_axes(axes, theme, columns, [*(names[key] for key in keys), metric])


def _path(trial: TrialRow, keys: list[str], columns: list[Scale]) -> tuple[list[int], list[float]]:
    there = [place for place, key in enumerate(keys) if key in trial.settings]
    return there, [columns[place].share(trial.settings[keys[place]]) for place in there]


def _upright_axes(axes: Axes, theme: Theme, columns: list[Scale], names: list[str]) -> None:
    axes.grid(False)
    for place, column in enumerate(columns):
        axes.axvline(place, color=theme.faint, linewidth=0.9, zorder=0)
        low, high = column.limits
        for at, words in column.ticks(5):
            height = (at - low) / (high - low) if high > low else 0.5
            words = axes.annotate(words, (place, height), (3, 0), textcoords="offset points", fontsize=8.5, va="center")
            words.set_path_effects([withStroke(linewidth=2.5, foreground=theme.ground)])
    slanted = {"rotation": 25, "ha": "right"} if len(names) > 3 else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_xlim(-0.1, len(names) - 0.65)
    axes.set_ylim(-0.05, 1.05)
    axes.yaxis.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
