"""The report as one HTML file that loads nothing: text, table and verdicts from the figures, pictures embedded."""

from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby
from pathlib import Path

from . import sweep_page
from .data import ReportData, SamplerResult, describe_magnitude
from .figures import curve_panels, magnitude_panels, ratio_panels
from .kinds import measures
from .page import data_url, fact_list, frame, panels, section, write_page
from .table import best_row, columns, html_table
from .verdicts import MAGNITUDES, TUNING, Verdict, verdicts

CHOSEN_HERE = "The best M is the one with the lowest {label} on these same {repeats}, which flatters it a little."
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
    return write_page(folder / "report.html", render_report(data, pictures))


def render_report(data: ReportData, pictures: Path) -> str:
    """The page; each picture drawn for it is also written to the folder `pictures`."""
    claims = verdicts(data.rows)
    sections = [
        section("What failed", _failures(data.failures)),
        *(sweep_page.sections(data.sweep, pictures) if data.sweep else []),
        section("What holds and what does not", _verdict_list(claims, data)),
        section(f"{data.subject.thing}s", _table(data)),
        section("Noise magnitude", "" if data.sweep else _magnitudes(data.rows, pictures)),
        section("Samples", _grids(data.rows)),
        section("Density ratio", panels(ratio_panels(data.curves), pictures)),
        section("Training", panels(curve_panels(data.curves), pictures)),
        section("How this was made", _provenance(data)),
    ]
    first = sweep_page.lead(data.sweep) if data.sweep else lead(data.rows, claims)
    return frame(data.name, first, _facts(data), sections)


def lead(rows: list[SamplerResult], claims: list[Verdict]) -> str:
    """The run in a sentence: how many of its baselines the tuned sampler beats, or without baselines what M does."""
    best, tuning = best_row(rows), [claim for claim in claims if claim.topic == TUNING]
    if best is None or not tuning:
        over_magnitudes = " ".join(claim.sentence for claim in claims if claim.topic == MAGNITUDES)
        return over_magnitudes or "Nothing has been measured beside its baselines."
    counts = [
        f"{sum(claim.outcome == 'holds' for claim in group)} of {len(group)} baselines on {measure}"
        for measure in dict.fromkeys(claim.measure for claim in tuning)
        for group in [[claim for claim in tuning if claim.measure == measure]]
    ]
    magnitude = describe_magnitude(best.noise_magnitude)
    return f"Tuned at M = {magnitude}, the sampler beats {' and '.join(counts)} by more than the spread over draws."


# ---- verdicts --------------------------------------------------------------------------------------------------------


def _verdict_list(claims: list[Verdict], data: ReportData) -> str:
    if not claims:
        return ""
    label, subject = measures(data.rows)[0].kind.label, data.subject
    here = CHOSEN_HERE.format(label=label, repeats=subject.repeats)
    chosen = subject.chosen_apart if any(row.chosen for row in data.rows) else here
    parts = [f'<p class="note">{subject.how_judged} {chosen}</p>']
    for topic, group in groupby(claims, key=lambda claim: claim.topic):
        items = "\n".join(
            f'<li class="{claim.outcome}"><b>{OUTCOMES[claim.outcome]}</b><span>{escape(claim.sentence)}</span></li>'
            for claim in group
        )
        parts.append(f'<h3>{escape(topic)}</h3>\n<ul class="verdicts">\n{items}\n</ul>')
    return "\n".join(parts)


def _table(data: ReportData) -> str:
    table = html_table(data.rows, data.subject.thing)
    return f'<p class="note">{escape(_how_measured(data))}</p>\n{table}' if table else ""


def _how_measured(data: ReportData) -> str:
    repeats = max(len(values) for row in data.rows for values in row.figures.values())
    return f"Mean and standard deviation over {repeats} {data.subject.repeats}. {data.subject.how_measured}"


def _failures(failures: Mapping[str, str]) -> str:
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(line)}</li>\n" for name, line in failures.items())
    return f"<ul>\n{items}</ul>" if items else ""


# ---- pictures --------------------------------------------------------------------------------------------------------


def _magnitudes(rows: list[SamplerResult], pictures: Path) -> str:
    shown = panels(magnitude_panels(rows), pictures, "panels wide")
    return f'<p class="note">{HOW_HELD}</p>\n{shown}' if shown and any(row.held for row in rows) else shown


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
    measured = [
        f"{column.metric} {column.show(row)[0]}{'%' * (column.kind.factor == 100)}" for column in columns([row])[:2]
    ]
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
        "Strategy": data.sweep.strategy if data.sweep else None,
        "Figure": next((measure.metric for measure in measures(data.rows)), None),
    }
    return fact_list({key: _plain(value) for key, value in known.items() if value not in (None, "")})


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
