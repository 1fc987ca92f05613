"""The report in a real browser: pytest tests/integration/test_report_browser.py"""

import io

import browser
import pytest
import report_example
import sweep_example
from rich.console import Console

from nnce_dist.report.html import write_report
from nnce_dist.stages import report
from nnce_dist.stages.compare import compare

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        browser.find_chromium() is None, reason="no chromium on this machine (apt-get install chromium)"
    ),
]
EXPRESSIONS = {
    "page width": "document.documentElement.scrollWidth",
    "broken pictures": "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length",
    "pictures": "document.images.length",
    "too wide": "[...document.querySelectorAll('main p, main h2, main h3, main li, main figure, main dl')]"
    ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))",
    "text size": "parseFloat(getComputedStyle(document.querySelector('.note')).fontSize)",
    "ground": "getComputedStyle(document.body).backgroundColor",
    "first cells": "[...document.querySelectorAll('tbody tr:last-child td')].slice(0, 2)"
    ".map(e => e.getBoundingClientRect().right)",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_report(report_example.example(folder), folder).as_uri()


@pytest.fixture(scope="module")
def address():
    with browser.chromium() as endpoint:
        yield endpoint


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False)])
def test_the_report_opens_cleanly_and_fits(page, address, width, dark):
    seen = browser.visit(address, page, width, EXPRESSIONS, dark)
    assert seen.problems == []
    assert seen.requests == [page]
    assert seen.answers["page width"] <= width
    assert seen.answers["too wide"] == []
    assert seen.answers["pictures"] > 15 and seen.answers["broken pictures"] == 0
    assert seen.answers["text size"] >= 14
    assert seen.answers["ground"] == ("rgb(20, 23, 29)" if dark else "rgb(251, 251, 250)")
    # Distance and class accuracy are in view without scrolling the table sideways.
    assert max(seen.answers["first cells"][:2]) <= width


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """The report of a sweep over settings, and two runs compared."""
    folder, quiet = tmp_path_factory.mktemp("runs"), Console(file=io.StringIO())
    made = {kind: sweep_example.run(kind, folder) for kind in ("asha", "pbt")}
    reports = {kind: report.write(*run, 1.0, quiet).as_uri() for kind, run in made.items()}
    return reports | {"compare": compare([root for _, root, _ in made.values()], folder / "out", quiet).as_uri()}


@pytest.mark.parametrize("name", ["asha", "pbt", "compare"])
def test_pages_about_sweeps_open_cleanly_and_fit(pages, address, name):
    for width in (390, 1200):
        seen = browser.visit(address, pages[name], width, EXPRESSIONS)
        assert seen.problems == [] and seen.requests == [pages[name]]
        assert seen.answers["page width"] <= width and seen.answers["too wide"] == []
        assert seen.answers["pictures"] > 7 and seen.answers["broken pictures"] == 0


def test_a_page_with_faults_would_be_caught(tmp_path, address):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><p style='width: 900px'>wide</p><script>undefined.x</script>")
    seen = browser.visit(address, bad.as_uri(), 390, EXPRESSIONS)
    assert any("undefined" in problem for problem in seen.problems)
    assert "http://127.0.0.1:9/x.png" in seen.requests
    assert seen.answers["page width"] > 390 and seen.answers["broken pictures"] == 1
