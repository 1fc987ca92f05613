"""Pictures of a sweep: what each setting explains, how the sweep went on, how trials learned."""

import math
from collections.abc import Iterable
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from .data import Curve
from .effects import QUANTILE, Effect
from .figures import Panel, Theme, distance_scale
from .scale import is_number, show
from .setting_figures import file_name, finite
from .trials import SEED, M, SweepData, TrialRow, short_names

WIDE = 6.0  # samples that span more than this factor lie on a logarithmic axis
MOST_ENDS = 6  # of segments, named below the axis

# ---- effects ---------------------------------------------------------------------------------------------------------


def effect_panel(found: list[Effect], metric: str) -> Panel | None:
    """A bar for each setting, the largest on top; nothing without any."""
    if not found:
        return None
    caption = (
        f"Share of the variance of the ranks of {metric} that the values of one setting alone explain, numbers in bins "
        f"(correlation ratio). The upright mark is what chance gives: {QUANTILE:.0%} of shufflings stay left of it. A "
        "bar that does not pass its mark, pale here, says nothing; what settings do together is in no bar."
    )
    size = (4.6, max(2.0, 0.9 + 0.45 * len(found)))
    return Panel("effects", "What matters", caption, lambda axes, theme: draw_effects(axes, theme, found), size)


def draw_effects(axes: Axes, theme: Theme, found: list[Effect]) -> None:
    """Shares as bars, with the share that chance gives."""
    names, places = short_names(effect.key for effect in found), range(len(found))
    for place, effect in zip(places, found, strict=True):
        shown = 1.0 if effect.share > effect.chance else 0.35
        axes.barh(place, effect.share, height=0.55, color=theme.plain, alpha=shown)
        axes.plot([effect.chance] * 2, [place - 0.38, place + 0.38], color=theme.held, linewidth=2)
    axes.set_yticks(places, [names[effect.key] for effect in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of variance explained alone")
    axes.grid(True, axis="x", linewidth=0.8)
    axes.grid(False, axis="y")


# ---- rungs and generations -------------------------------------------------------------------------------------------


def segments_panel(sweep: SweepData, metric: str) -> Panel | None:
    """The metric at the end of every segment; nothing where trials have only one."""
    if not sweep.segmented:
        return None
    copies = any(one.source is not None for one in sweep.outcomes)
    ends = "Orange: began with a copy of another trial; a hollow dot is a state that was given up" if copies else (
        "A hollow dot is where a trial was stopped"
    )  # fmt: skip
    caption = f"{metric} of every trial at each decision. {ends}."
    return Panel(
        file_name(metric, "samples"),
        f"{metric} as the sweep went on",
        caption,
        lambda axes, theme: draw_segments(axes, theme, sweep, metric),
    )


def draw_segments(axes: Axes, theme: Theme, sweep: SweepData, metric: str) -> None:
    """Lines from decision to decision, along the states that were trained on."""
    known = {(one.trial, one.samples): one for one in sweep.outcomes if finite(one.value)}
    ends = sorted({one.samples for one in sweep.outcomes})
    continued = set()
    for before, after in pairwise(ends):
        for one in (found for (_, samples), found in known.items() if samples == after):
            origin = (one.trial if one.source is None else one.source, before)
            if origin in known:
                continued.add(origin)
                colour = theme.plain if one.source is None else theme.held
                heights = [known[origin].value, one.value]
                axes.plot([before, after], heights, "-", color=colour, linewidth=1.2, alpha=0.8)
    for place, one in known.items():
        hollow = place not in continued and place[1] != ends[-1]
        face = {"markerfacecolor": "none", "color": theme.faint} if hollow else {"color": theme.plain}
        axes.plot(one.samples, one.value, "o", markersize=4.5, **face)
    if known:
        distance_scale(axes, metric, [one.value for one in known.values()])
    if ends[-1] > WIDE * ends[0]:
        axes.set_xscale("log", base=2)
    shown = ends[:: -(-len(ends) // MOST_ENDS)]
    axes.set_xticks(shown, [f"{end:,}" for end in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("samples seen")


# ---- learning --------------------------------------------------------------------------------------------------------


def learning(sweep: SweepData) -> list[Curve]:
    """The training curve of every trial that began; its level is its value of the setting that curves are told by."""
    key = level(sweep.trials)
    trials = sorted(sweep.trials, key=lambda trial: trial.settings.get(key, -math.inf)) if key else sweep.trials
    return [
        Curve(_told(trial, key), trial.stage, trial.records, trial.settings.get(key) if key else None)
        for trial in trials
        if trial.records
    ]


def _told(trial: TrialRow, key: str | None) -> str:
    name = show(trial.settings[key]) if key in trial.settings else trial.name
    return " ".join(filter(None, [trial.run, name]))


def level(trials: Iterable[TrialRow]) -> str | None:
    """The setting that curves are told by: M if it varies, or else the first number that does."""
    trials = list(trials)
    keys = dict.fromkeys([M, *(key for trial in trials for key in trial.settings)])
    return next((key for key in keys if key != SEED and _varies(trials, key)), None)


def _varies(trials: list[TrialRow], key: str) -> bool:
    values = {trial.settings.get(key) for trial in trials if not isinstance(trial.settings.get(key), list)}
    return len(values) > 1 and all(is_number(value) for value in values)
