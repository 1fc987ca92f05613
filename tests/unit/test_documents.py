"""python -m pytest tests/unit/test_documents.py

The commands that the documents show work. Those that need a cluster or NVIDIA's weights are checked as
far as their settings go; `make test` is this, and `make imagenet64` runs what test_pipeline.py runs, less small.
"""

import re
import shlex
import sys
from pathlib import Path

import pandas
import pytest

from nnce_dist import cli
from nnce_dist.config.load import load

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "pipelines/README.md", "cluster/README.md", ".github/CONTRIBUTING.md"]


def commands(document: str) -> list[list[str]]:
    """Every command in the fenced blocks of a document, as words."""
    blocks = re.findall(r"^```\n(.*?)^```", (REPOSITORY / document).read_text(), re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PIPELINES = [
    words[words.index("python") :] for document in DOCUMENTS for words in commands(document) if "python" in words
]


@pytest.mark.parametrize("words", PIPELINES, ids=" ".join)
def test_a_pipeline_command_names_a_file_and_valid_settings(words):
    file = REPOSITORY / words[1]
    assert file.is_file()
    preset = {"density_ratio.py": "density-ratio"}.get(file.name, "laptop")
    settings = [word for word in words[2:] if not word.startswith(("--", "preset=runs/"))]  # which other commands make
    load(settings, file.parent / "presets", preset)


@pytest.mark.slow
def test_the_sweeps_that_are_shown_run_and_so_does_what_is_made_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = commands("pipelines/README.md")
    for words in shown:
        monkeypatch.setattr(sys, "argv", words if words[0] == "nnce" else [*words[1:], *smaller(words)])
        done = cli.main() if words[0] == "nnce" else cli.run_pipeline(str(REPOSITORY / words[1]), "density-ratio")
        assert done == 0, words
    assert {Path(word).suffix for words in shown for word in words} >= {".py", ".yaml"}
    tables = {path.parent.name: pandas.read_csv(path) for path in Path("runs").glob("*/sweep.csv")}
    assert {name: len(table) for name, table in tables.items()} == {
        **{"auto": 5, "kinds": 20},
        **{"grid": 15, "random": 12, "asha": 6, "pbt": 6, "tpe": 6},
        **{"asha-best": 1, "longer": 1},
    }
    assert len(pandas.read_csv("compare/compare.csv")) == 18 and Path("compare/compare.html").is_file()


def smaller(words: list[str]) -> list[str]:
    """Settings that make a command of the density-ratio pipeline one of seconds."""
    few = ["sweep.trials=6"] if any(word.startswith("sweep.trials=") for word in words) else []
    length = ["density_ratio.training.samples=512", "density_ratio.training.batch=16", "density_ratio.dim=2"]
    data = ["density_ratio.num_samples=64", "density_ratio.test_samples=64", "workers.runtime=local"]
    return [*few, *length, *data, "density_ratio.training.log_every=128"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_that_are_named_exist(document):
    targets = re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.M)
    named = re.findall(r"^make ([a-z0-9-]+)|`make ([a-z0-9-]+)`", (REPOSITORY / document).read_text(), re.M)
    assert {a or b for a, b in named} <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (REPOSITORY / document).read_text()
    folder = (REPOSITORY / document).parent
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (folder / link).exists()]
    assert not missing
