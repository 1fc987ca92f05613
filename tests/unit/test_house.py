"""python -m pytest tests/unit/test_house.py

The house's rules (.github/CONTRIBUTING.md) about imports and sizes, read off the source.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nnce_dist"
ONLY_IN = {
    "ray": ("on_ray/",),
    "torch.distributed": ("on_ray/runtime.py", "training/runtime.py"),
    "omegaconf": ("config/load.py",),
    "s3fs": ("data/",),
    "fsspec": ("data/",),
    "webdataset": ("data/",),
    "prometheus_client": ("metrics/",),
}
PURE = ("ratio", "models", "samplers", "sweep")
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(relative: str) -> set[str]:
    """Every module that a file imports, absolute."""
    here = ["nnce_dist", *relative.removesuffix(".py").split("/")]
    found = set()
    for node in ast.walk(TREES[relative]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(here[: -node.level] if node.level else []), *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str | None:
    """The folder of ours that a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "nnce_dist" and (PACKAGE / parts[1]).is_dir() else None


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library):
    users = {file for file in TREES for name in imports(file) if name == library or name.startswith(f"{library}.")}
    assert all(file.startswith(ONLY_IN[library]) for file in users), users


def test_the_pure_rooms_import_nothing_of_ours():
    wrong = {
        (file, name)
        for file in TREES
        for name in imports(file)
        if file.split("/")[0] in PURE and room(name) not in (None, file.split("/")[0])
    }
    assert not wrong


def test_no_two_rooms_import_each_other():
    edges = defaultdict(set)
    for file in TREES:
        edges[file.split("/")[0]] |= {room(name) for name in imports(file)} - {None, file.split("/")[0]}
    assert not {(a, b) for a in edges for b in edges[a] if a in edges.get(b, ())}


def test_functions_and_files_stay_short():
    functions = [
        (node.end_lineno - node.lineno + 1, file, node.name)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert max(functions)[0] <= 60, max(functions)
    lengths = {file: len((PACKAGE / file).read_text().splitlines()) for file in TREES}
    assert max(lengths.values()) <= 400, lengths


def test_every_public_name_says_what_it_is():
    bare = [
        (file, node.name)
        for file, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare
