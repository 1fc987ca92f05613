"""A page that loads nothing: its frame, its sections, its pictures for light and for dark ground."""

import base64
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from .figures import DARK, LIGHT, Panel, render


def write_page(page: Path, content: str) -> Path:
    """Puts the page in its place at once; returns its path."""
    temporary = page.with_suffix(".part")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(page)
    return page


def frame(title: str, lead: str, facts: str, sections: list[str]) -> str:
    """The whole page; empty sections are left out."""
    package = resources.files(__package__)
    return Template((package / "template.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(package / "style.css").read_text(encoding="utf-8"),
        lead=escape(lead),
        facts=facts,
        sections="\n".join(filter(None, sections)),
    )


def section(title: str, *parts: str) -> str:
    """Parts below a heading; nothing without parts."""
    body = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def note(text: str) -> str:
    """A remark."""
    return f'<p class="note">{escape(text)}</p>'


def fact_list(facts: dict[str, str]) -> str:
    """Short facts beside each other; empty ones are left out."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f'<dl class="facts">{items}</dl>' if items else ""


def panels(shown: list[Panel], pictures: Path, kind: str = "panels") -> str:
    """Pictures side by side; each also becomes a PNG file in the folder `pictures`."""
    if not shown:
        return ""
    return f'<div class="{kind}">\n' + "\n".join(_panel(panel, pictures) for panel in shown) + "\n</div>"


def _panel(panel: Panel, pictures: Path) -> str:
    light, dark = render(panel, LIGHT, DARK)
    (pictures / f"{panel.name}.png").write_bytes(light)
    return (
        f"<figure>\n<h3>{escape(panel.title)}</h3>\n<picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{data_url(dark)}">'
        f'<img src="{data_url(light)}" alt="{escape(panel.caption)}"></picture>\n'
        f"<figcaption>{escape(panel.caption)}</figcaption>\n</figure>"
    )


def data_url(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
