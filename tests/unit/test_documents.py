"""python -m pytest tests/unit/test_documents.py

The commands that the documents show work. Those that need a cluster or NVIDIA's weights are checked as
far as their settings go; `make test` is this, and `make imagenet64` runs what test_pipeline.py runs, less small.
"""

import re
import shlex
from pathlib import Path

import pytest

from nnce_dist.config.load import load

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "cluster/README.md", ".github/CONTRIBUTING.md"]


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
    load([word for word in words[2:] if not word.startswith("--")], file.parent / "presets", "laptop")


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
