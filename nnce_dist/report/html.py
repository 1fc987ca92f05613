"""The report as one HTML file that loads nothing: text, table and verdicts from the figures, pictures embedded."""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template

from .data import ReportData, SamplerResult, describe_magnitude, find_metric
from .figures import DARK, LIGHT, Panel, curve_panels, magnitude_panels, ratio_panels, render
from .table import best_row, columns, html_table
from .verdicts import TUNING, Verdict, verdicts

HOW_JUDGED = (
    "Computed from the figures below. A difference counts when it is larger than its standard deviation over the "
    "evaluation draws, taken draw by draw, because all samplers share their noise. That spread is of sampling from one "
    "training run, not of repeated training."
)
NAMES_AND_ROUNDING = (
    "A figure's full name says which network's features and how many images it rests on; only figures of the same name "
    "compare. Images are rounded to 8 bits as 127.5 x + 128, clipped and truncated."
)
CHOSEN_APART = "The best M was chosen on a draw of its own, which none of these figures saw."
CHOSEN_HERE = "The best M is the one with the lowest FD on these same draws, which flatters it a little."
HOW_HELD = (
    "At a ratio of 1 every gradient weight is M/(M+1): a small M also weakens the energy against its regulariser "
    "\N{GREEK SMALL LETTER GAMMA}. The held samplers use \N{GREEK SMALL LETTER GAMMA}M/(M+1) instead of "
    "\N{GREEK SMALL LETTER GAMMA}, which takes that difference away and leaves the rest of what M does."
)
OUTCOMES = {"holds": "better", "unclear": "unclear", "fails": "worse"}
SECONDS = ("total_seconds", "stage_seconds")  # of the manifest, shown in their own table


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes `report.html` into the run's folder, and its pictures as PNG files into `figures/`; returns its path."""
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    temporary = page.with_suffix(".part")
    temporary.write_text(render_report(data, pictures), encoding="utf-8")
    temporary.replace(page)
    return page


def render_report(data: ReportData, pictures: Path) -> str:
    """The page; each picture drawn for it is also written to the folder `pictures`."""
    claims = verdicts(data.rows)
    sections = [
        _section("What holds and what does not", _verdict_list(claims, data.rows)),
        _section("Samplers", _samplers(data.rows)),
        _section("Noise magnitude", _magnitudes(data.rows, pictures)),
        _section("Samples", _grids(data.rows)),
        _section("Density ratio", _panels(ratio_panels(data.curves), pictures)),
        _section("Training", _panels(curve_panels(data.curves), pictures)),
        _section("How this was made", _provenance(data)),
    ]
    package = resources.files(__package__)
    return Template((package / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(data.name),
        style=(package / "style.css").read_text(encoding="utf-8"),
        lead=escape(lead(data.rows, claims)),
        facts=_facts(data),
        sections="\n".join(section for section in sections if section),
    )


def lead(rows: list[SamplerResult], claims: list[Verdict]) -> str:
    """The run in a sentence: how many of its baselines the tuned sampler beats, on each measure."""
    best, tuning = best_row(rows), [claim for claim in claims if claim.topic == TUNING]
    if best is None or not tuning:
        return "No tuned sampler has been measured beside its baselines."
    counts = [
        f"{sum(claim.outcome == 'holds' for claim in group)} of {len(group)} baselines on {measure}"
        for measure in dict.fromkeys(claim.measure for claim in tuning)
        for group in [[claim for claim in tuning if claim.measure == measure]]
    ]
    magnitude = describe_magnitude(best.noise_magnitude)
    return f"Tuned at M = {magnitude}, the sampler beats {' and '.join(counts)} by more than the spread over draws."


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _verdict_list(claims: list[Verdict], rows: list[SamplerResult]) -> str:
    if not claims:
        return ""
    chosen = CHOSEN_APART if any(row.chosen for row in rows) else CHOSEN_HERE
    parts = [f'<p class="note">{HOW_JUDGED} {chosen}</p>']
    for topic, group in groupby(claims, key=lambda claim: claim.topic):
        items = "\n".join(
            f'<li class="{claim.outcome}"><b>{OUTCOMES[claim.outcome]}</b><span>{escape(claim.sentence)}</span></li>'
            for claim in group
        )
        parts.append(f'<h3>{escape(topic)}</h3>\n<ul class="verdicts">\n{items}\n</ul>')
    return "\n".join(parts)


def _samplers(rows: list[SamplerResult]) -> str:
    table = html_table(rows)
    return f'<p class="note">{escape(_how_measured(rows))}</p>\n{table}' if table else ""


def _how_measured(rows: list[SamplerResult]) -> str:
    draws = max(len(values) for row in rows for values in row.figures.values())
    return f"Mean and standard deviation over {draws} evaluation draws. {NAMES_AND_ROUNDING}"


# ---- pictures --------------------------------------------------------------------------------------------------------


def data_url(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _panels(panels: list[Panel], pictures: Path, kind: str = "panels") -> str:
    if not panels:
        return ""
    return f'<div class="{kind}">\n' + "\n".join(_panel(panel, pictures) for panel in panels) + "\n</div>"


def _magnitudes(rows: list[SamplerResult], pictures: Path) -> str:
    panels = _panels(magnitude_panels(rows), pictures, "panels wide")
    return f'<p class="note">{HOW_HELD}</p>\n{panels}' if panels and any(row.held for row in rows) else panels


def _panel(panel: Panel, pictures: Path) -> str:
    light, dark = render(panel, LIGHT), render(panel, DARK)
    (pictures / f"{panel.name}.png").write_bytes(light)
    return (
        f"<figure>\n<h3>{escape(panel.title)}</h3>\n<picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{data_url(dark)}">'
        f'<img src="{data_url(light)}" alt="{escape(panel.caption)}"></picture>\n'
        f"<figcaption>{escape(panel.caption)}</figcaption>\n</figure>"
    )


def _grids(rows: list[SamplerResult]) -> str:
    shown = [row for row in rows if row.grid is not None]
    if not shown:
        return ""
    figures = "\n".join(
        f'<figure>\n<h3>{escape(row.name)}</h3>\n<img src="{data_url(row.grid.read_bytes())}" '
        f'alt="Samples: {escape(row.name)}">\n<figcaption>{escape(_grid_caption(row))}</figcaption>\n</figure>'
        for row in shown
    )
    return (
        '<p class="note">Samplers show the same classes, from the same noise, at the same places.</p>\n'
        f'<div class="grids">\n{figures}\n</div>'
    )


def _grid_caption(row: SamplerResult) -> str:
    measured = [f"{column.metric} {column.show(row)[0]}{'%' * (column.factor == 100)}" for column in columns([row])[:2]]
    cost = [] if row.evaluations is None else [f"{row.evaluations} evaluations per image"]
    return ", ".join([*measured, *cost]) or row.note


# ---- provenance ------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 4 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _facts(data: ReportData) -> str:
    manifest = data.manifest
    known = {
        "Seed": manifest.get("seed"),
        "Hardware": manifest.get("hardware"),
        "Wall time": duration(float(manifest["total_seconds"])) if "total_seconds" in manifest else None,
        "Distance": find_metric(data.rows, "fd"),
    }
    items = "".join(
        f"<div><dt>{k}</dt><dd>{escape(_plain(v))}</dd></div>" for k, v in known.items() if v not in (None, "")
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def _provenance(data: ReportData) -> str:
    parts = []
    if "command" in data.manifest:
        parts.append(f"<pre><code>{escape(str(data.manifest['command']))}</code></pre>")
    rest = {key: value for key, value in data.manifest.items() if key not in ("command", *SECONDS)}
    if rest:
        terms = "\n".join(f"<dt>{escape(_words(k))}</dt><dd>{escape(_plain(v))}</dd>" for k, v in rest.items())
        parts.append(f'<dl class="run">\n{terms}\n</dl>')
    stages = data.manifest.get("stage_seconds")
    if isinstance(stages, Mapping):
        parts.append(_times(stages))
    if data.config:
        parts.append(
            f"<details><summary>Resolved configuration</summary><pre><code>{escape(data.config)}</code></pre></details>"
        )
    return "\n".join(parts)


def _times(stages: Mapping[str, float]) -> str:
    shown = {stage.replace("_", "-").replace("/", ", "): duration(float(spent)) for stage, spent in stages.items()}
    rows = "\n".join(f"<tr><th scope='row'>{escape(s)}</th><td>{spent}</td></tr>" for s, spent in shown.items())
    head = "<thead><tr><th scope='col'>Stage</th><th scope='col'>Wall time</th></tr></thead>"
    return f"<div class='scroll times'><table>\n{head}\n<tbody>\n{rows}\n</tbody>\n</table></div>"


def _words(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _plain(value: object) -> str:
    """A manifest's value on one line: nested mappings and lists are spelt out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return ", ".join(map(_plain, value))
    return str(value)
