"""The report as one HTML file that loads nothing: text, table and verdicts from the figures, pictures embedded."""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template

from .data import ReportData, SamplerResult, find_metric
from .figures import DARK, LIGHT, Panel, curve_panels, magnitude_panels, ratio_panels, render
from .table import columns, html_table
from .verdicts import Verdict, verdicts

HOW_JUDGED = (
    "Computed from the figures below. A difference counts when it is larger than its standard deviation over the "
    "evaluation draws, taken draw by draw, because all samplers share their noise. That spread is of sampling from one "
    "training run, not of repeated training."
)
NAMES_AND_ROUNDING = (
    "A figure's full name says which network's features and how many images it rests on; only figures of the same name "
    "compare. Images are rounded to 8 bits as 127.5 x + 128, clipped and truncated."
)
OUTCOMES = {"holds": "holds", "unclear": "unclear", "fails": "does not hold"}
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
        _section("What holds", _verdict_list(claims)),
        _section("Samplers", _samplers(data.rows)),
        _section("Noise magnitude", _panels(magnitude_panels(data.rows), pictures, "panels wide")),
        _section("Samples", _grids(data.rows)),
        _section("Density ratio", _panels(ratio_panels(data.curves), pictures)),
        _section("Training", _panels(curve_panels(data.curves), pictures)),
        _section("How this was made", _provenance(data)),
    ]
    package = resources.files(__package__)
    return Template((package / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(data.name),
        style=(package / "style.css").read_text(encoding="utf-8"),
        lead=escape(lead(claims)),
        facts=_facts(data),
        sections="\n".join(section for section in sections if section),
    )


def lead(claims: list[Verdict]) -> str:
    """The run in a sentence or two: how many claims hold, and the first about tuning."""
    if not claims:
        return "No sampler has been measured yet."
    counts = {outcome: sum(claim.outcome == outcome for claim in claims) for outcome in OUTCOMES}
    first = next((claim.sentence for claim in claims if claim.topic == "Tuning"), claims[0].sentence)
    return (
        f"{first} Of {len(claims)} comparisons {counts['holds']} hold, {counts['fails']} do not, "
        f"and {counts['unclear']} are within the spread."
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _verdict_list(claims: list[Verdict]) -> str:
    if not claims:
        return ""
    parts = [f'<p class="note">{escape(HOW_JUDGED)}</p>']
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
        '<p class="note">The same classes, and for samplers the same noise, at the same places.</p>\n'
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
        "Frechet distance": find_metric(data.rows, "fd"),
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
    rows = "\n".join(
        f"<tr><th scope='row'>{escape(_words(stage))}</th><td>{duration(float(seconds))}</td></tr>"
        for stage, seconds in stages.items()
    )
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
