"""The report's pictures: one panel each, for a phone as for a desk, drawn for light and for dark ground."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, ScalarFormatter

from .data import Curve, SamplerResult, describe_magnitude, mean_sd, tuned_rows
from .kinds import Measure, measures

SIZE = (4.6, 3.2)  # inches: 11 pt text stays readable when a phone shows the panel 350 pixels wide
DPI = 180
GAMMA = "\N{GREEK SMALL LETTER GAMMA}"
MOST_TICKS = 9  # magnitudes named below the axis
MOST_NAMES = 12  # jobs named above their curves
LOG_BEYOND = 6.0  # a distance axis is logarithmic when its values span more than this factor


@dataclass(frozen=True)
class Theme:
    """Colours of one ground."""

    text: str
    faint: str  # axes, reference lines
    grid: str
    plain: str
    held: str
    ground: str
    magnitudes: tuple[float, float]  # part of the colour map that stands out on this ground


LIGHT = Theme("#1f2430", "#687083", "#e4e6ec", "#2563ae", "#c2570c", "#ffffff", (0.0, 0.86))
DARK = Theme("#e6e8ee", "#9aa2b4", "#30353f", "#6cb0ff", "#ff9d4d", "#1b1f27", (0.28, 1.0))


@dataclass(frozen=True)
class Look:
    """How a curve is drawn."""

    colour: str | tuple
    style: str = "-"
    width: float = 1.5

    def line(self) -> Line2D:
        """For a legend."""
        return Line2D([], [], color=self.colour, linestyle=self.style, linewidth=self.width)


@dataclass(frozen=True)
class Panel:
    """One picture of the report."""

    name: str  # of its PNG file
    title: str
    caption: str
    draw: Callable[[Axes, Theme], None]
    size: tuple[float, float] = SIZE


def render(panel: Panel, *themes: Theme) -> list[bytes]:
    """The panel on each ground as a PNG, its own ground transparent.

    What differs is colours alone: the first one's layout, which takes longer than drawing, is that of all.
    """
    found, pictures = None, []
    for theme in themes:
        with matplotlib.rc_context(_style(theme)):
            figure = _drawn(panel, theme)
            if found:
                figure.set_layout_engine("none")
                for axes, like in zip(figure.axes, found.axes, strict=True):
                    axes.set_position(like.get_position())
            pictures.append(_png(figure))
        found = found or figure
    return pictures


def _drawn(panel: Panel, theme: Theme) -> Figure:
    figure = Figure(figsize=panel.size, dpi=DPI, facecolor="none", layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, axis="y", linewidth=0.8)
    panel.draw(axes, theme)
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    # `savefig` would draw twice; the default level takes 10 ms longer and makes files a seventh smaller
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return png.getvalue()


def _style(theme: Theme) -> dict:
    return {
        "font.size": 11,
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.faint,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "grid.color": theme.grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "legend.frameon": False,
    }


# ---- figures per noise magnitude -------------------------------------------------------------------------------------


def magnitude_panels(rows: list[SamplerResult]) -> list[Panel]:
    """Every figure that rows are compared on against M, with the rows that have no M as lines."""
    return [_magnitude_panel(rows, measure) for measure in measures(rows) if tuned_rows(rows, measure.metric)]


def _magnitude_panel(rows: list[SamplerResult], measure: Measure) -> Panel:
    dots = "Large dots are means, bars one standard deviation, small dots the values behind them"
    lines = "; lines are samplers without an M" if any(row.group != "tuned" for row in rows) else ""
    return Panel(
        f"{measure.name}_by_noise_magnitude",
        measure.metric,
        f"{measure.kind.caption}; {measure.kind.direction}. {dots}{lines}.",
        lambda axes, theme: draw_magnitudes(axes, theme, rows, measure.metric),
    )


def draw_magnitudes(axes: Axes, theme: Theme, rows: list[SamplerResult], metric: str) -> None:
    """Mean, spread and draws at each M, plain and with gamma held, beside the samplers without an M."""
    magnitudes = sorted({r.noise_magnitude for held in (False, True) for r in tuned_rows(rows, metric, held)})
    position = {magnitude: place for place, magnitude in enumerate(magnitudes)}
    both = ((False, theme.plain, "o", f"{GAMMA} as given"), (True, theme.held, "D", f"{GAMMA}(M+1)/M held"))
    for held, colour, marker, label in both:
        swept = tuned_rows(rows, metric, held)
        if swept:
            at = [position[row.noise_magnitude] + (0.12 if held else -0.12) * _both(rows, metric) for row in swept]
            _spread(axes, at, [row.figures[metric] for row in swept], colour, marker, label)
    shown = range(0, len(magnitudes), math.ceil(len(magnitudes) / MOST_TICKS))
    axes.set_xticks(shown, [describe_magnitude(magnitudes[place]) for place in shown])
    axes.set_xlabel("noise magnitude M")
    axes.set_xlim(-0.5, len(magnitudes) - 0.5)
    distance_scale(axes, metric, [v for row in rows if row.group != "data" for v in row.figures.get(metric, [])])
    _reference_lines(axes, theme, rows, metric)
    if _both(rows, metric):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.3, borderaxespad=0.2)


def _both(rows: list[SamplerResult], metric: str) -> bool:
    return bool(tuned_rows(rows, metric, False) and tuned_rows(rows, metric, True))


def _spread(axes: Axes, at: list[float], draws: list[list[float]], colour: str, marker: str, label: str) -> None:
    means, sds = zip(*map(mean_sd, draws), strict=True)
    bars = [0 if math.isnan(sd) else sd for sd in sds]
    axes.errorbar(at, means, bars, color=colour, marker=marker, markersize=6, linewidth=1.6, capsize=3, label=label)
    for x, values in zip(at, draws, strict=True):
        axes.plot([x + 0.09] * len(values), values, ".", color=colour, markersize=3.5, alpha=0.7)


def distance_scale(axes: Axes, metric: str, values: list[float]) -> None:
    """Makes the upright axis one of shares, or logarithmic where the values ask for it."""
    if metric.startswith("class_accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif min(values) > 0 and max(values) > LOG_BEYOND * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def _reference_lines(axes: Axes, theme: Theme, rows: list[SamplerResult], metric: str) -> None:
    """A dashed line per sampler without an M, named at the right edge."""
    others = [row for row in rows if row.group not in ("tuned", "data") and metric in row.figures]
    heights = [mean_sd(row.figures[metric])[0] for row in others]
    for height in heights:
        axes.axhline(height, color=theme.faint, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.autoscale_view()
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    wanted = [float(to_axes((0, height))[1]) for height in heights]
    for row, place, line in zip(others, apart(wanted, 0.075), wanted, strict=True):
        axes.annotate(
            row.name,
            xy=(1.0, line),
            xytext=(1.05, place),
            xycoords="axes fraction",
            fontsize=9,
            color=theme.text,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": theme.faint,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def apart(wanted: list[float], gap: float) -> list[float]:
    """Places near the wanted ones and at least `gap` apart: labels that would overlap spread around their mean."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[list[int]] = []
    for index in order:
        clusters.append([index])
        while len(clusters) > 1 and _top(clusters[-2], wanted, gap) + gap > _bottom(clusters[-1], wanted, gap):
            last = clusters.pop()
            clusters[-1] += last
    places = [0.0] * len(wanted)
    for cluster in clusters:
        for rank, index in enumerate(cluster):
            places[index] = _bottom(cluster, wanted, gap) + rank * gap
    return places


def _bottom(cluster: list[int], wanted: list[float], gap: float) -> float:
    return sum(wanted[i] for i in cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _top(cluster: list[int], wanted: list[float], gap: float) -> float:
    return _bottom(cluster, wanted, gap) + gap * (len(cluster) - 1)


# ---- curves over training --------------------------------------------------------------------------------------------

RATIO_METRICS = {  # key after the network's name -> title, what it says
    "log_ratio_data": (
        "ln r on data",
        "Mean log-ratio; its gap to the noise (generated samples, for a sampler) is what is told apart.",
    ),
    "log_ratio_noise": ("ln r on noise", "Mean log-ratio; 0 on both sides means that they agree."),
    "ratio_noise": ("E[r] on noise", "Mean ratio; 1 for the true density ratio."),
    "effective_sample_size": ("Effective sample size", "Part of the noise that carries the weights r."),
    "saturated_noise": ("r > M on noise", "Part of the noise where the objective saturates."),
}


def curve_panels(curves: list[Curve]) -> list[Panel]:
    """A panel per stage and network: its loss."""
    return [
        _curve_panel(jobs, stage, key, f"{_network(key)} loss", "Mean over each logging interval.")
        for stage, jobs in _stages(curves)
        for key in _keys(jobs, "loss")
    ]


def ratio_panels(curves: list[Curve]) -> list[Panel]:
    """A panel per density-ratio diagnostic of every network that records it."""
    curves = [with_effective_sample_size(curve) for curve in curves]
    return [
        _curve_panel(jobs, stage, key, title, says)
        for stage, jobs in _stages(curves)
        for metric, (title, says) in RATIO_METRICS.items()
        for key in _keys(jobs, metric)
    ]


def with_effective_sample_size(curve: Curve) -> Curve:
    """Adds `<network>/effective_sample_size` in [0, 1] = E[r]^2 / E[r^2] to records that have both means."""
    return replace(curve, records=[{**record, **_effective(record)} for record in curve.records])


def _effective(record: Mapping[str, float | int | str]) -> dict[str, float]:
    networks = [key.removesuffix("/ratio_noise_squared") for key in record if key.endswith("/ratio_noise_squared")]
    means = {
        network: (record[f"{network}/ratio_noise"], record[f"{network}/ratio_noise_squared"]) for network in networks
    }
    return {f"{network}/effective_sample_size": r * r / square for network, (r, square) in means.items() if square > 0}


def _stages(curves: list[Curve]) -> Iterator[tuple[str, list[Curve]]]:
    for stage in dict.fromkeys(curve.stage for curve in curves):
        yield stage, [curve for curve in curves if curve.stage == stage]


def _keys(curves: list[Curve], metric: str) -> list[str]:
    """Every `<network>/<metric>` that one of the jobs recorded."""
    keys = {key for curve in curves for record in curve.records for key in record}
    return sorted(key for key in keys if key.endswith(f"/{metric}"))


def _network(key: str) -> str:
    return key.partition("/")[0].replace("_", " ").capitalize()


def _curve_panel(jobs: list[Curve], stage: str, key: str, title: str, caption: str) -> Panel:
    name = f"{stage}_{key.replace('/', '_')}"
    return Panel(
        name, f"{title}, {stage.replace('_', '-')}", caption, lambda axes, theme: draw_curves(axes, theme, jobs, key)
    )


def draw_curves(axes: Axes, theme: Theme, jobs: list[Curve], key: str) -> None:
    """One metric of several jobs over samples seen; the colour follows M, dashes mean that gamma was held."""
    swept = sorted({job.level for job in jobs if job.level is not None})
    recorded = [job for job in jobs if job.series(key)[0]]
    width = 1.5 if len(recorded) <= 2 * MOST_NAMES else 0.8
    looks = [Look(level_colour(job.level, swept, theme), "--" if job.held else "-", width) for job in recorded]
    _plot_together(axes, zip(looks, (job.series(key) for job in recorded), strict=True))
    _samples_axis(axes)
    axes.margins(x=0.02)
    _curve_legend(axes, theme, swept, {job.name: look for job, look in zip(recorded, looks, strict=True)})


def _plot_together(axes: Axes, curves: Iterable[tuple[Look, tuple[list[float], list[float]]]]) -> None:
    """What `axes.plot` draws for curves one by one, which takes three times as long for dozens."""
    for style, group in groupby(curves, lambda curve: curve[0].style):
        looks, points = zip(*((look, np.column_stack(series)) for look, series in group), strict=True)
        ends = {"capstyle": "projecting" if style == "-" else "butt", "joinstyle": "round"}
        colours, widths = [look.colour for look in looks], [look.width for look in looks]
        axes.add_collection(LineCollection(points, colors=colours, linestyles=style, linewidths=widths, **ends))


def _samples_axis(axes: Axes) -> None:
    """Names the axis of the samples seen."""
    axes.set_xlabel("samples seen")
    axes.xaxis.set_major_formatter(lambda value, _: _thousands(value))


def _curve_legend(axes: Axes, theme: Theme, swept: list[float], named: Mapping[str, Look]) -> None:
    """Names the curves; where they are too many, some of the levels that their colours stand for."""
    if len(named) > MOST_NAMES:
        chosen = [swept[round(part * (len(swept) - 1) / 3)] for part in range(4)] if len(swept) > 3 else []
        named = {_level(one): Look(level_colour(one, swept, theme)) for one in chosen}
    if len(named) > 1:
        lines = [look.line() for look in named.values()]
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        axes.legend(lines, named, fontsize=9.5, ncols=4, handlelength=1.4, columnspacing=1, **place)


def _level(value: float) -> str:
    return describe_magnitude(float(f"{value:.3g}"))


def level_colour(level: float | None, swept: list[float], theme: Theme) -> str | tuple:
    """A colour that rises with the level; jobs without one beside others are grey."""
    if level is None:
        return theme.faint if swept else theme.plain
    return step_colour(swept.index(level), len(swept), theme)


def step_colour(place: int, count: int, theme: Theme) -> str | tuple:
    """The colour of one of `count` steps."""
    return theme.plain if count == 1 else share_colour(place / (count - 1), theme)


def share_colour(share: float, theme: Theme) -> tuple:
    """The colour of a share in [0, 1]."""
    low, high = theme.magnitudes
    return matplotlib.colormaps["viridis"](low + (high - low) * share)


def _thousands(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:g}"
