"""A folder of pictures as a source: one sub-folder per class, or a file that says the class of each picture."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .shards import order
from .source import Sample, Source, labelled
from .tar import IMAGES


def image_folder(folder: Path, labels: Path | None = None) -> Source:
    """Pictures whose class is their sub-folder, numbered in the order of the names; or what the file `labels` says.

    `labels` is a CSV file with columns `file` (below `folder`) and `class` (a name, or numbers from 0), or JSON,
    `{"labels": [["file", number], ...]}`. The pictures are mixed, the same way every time: shards of one class each
    would make poor batches. Raises ValueError or OSError with one line.
    """
    if labels:
        files, names, left_out = *_as_listed(labels), ""
    else:
        files, names, left_out = _by_sub_folder(folder)
    mixed = [files[number] for number in order(0, 0, len(files))]
    identity = "\n".join(f"{file}\t{os.path.getsize(folder / file)}\t{label}" for file, label in mixed)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    num_classes = len(names) or 1 + max(label for _, label in files)
    return Source(_Files(folder, mixed), f"image folder, sha256 {digest}", num_classes, names, left_out)


@dataclass(frozen=True)
class _Files:
    folder: Path
    files: Sequence[tuple[str, int]]  # below the folder, and their classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: slice) -> "_Files":
        return _Files(self.folder, self.files[part])

    def __iter__(self) -> Iterator[Sample]:
        for file, label in self.files:
            path = self.folder / file
            yield labelled(str(path), path.read_bytes(), label)


def _by_sub_folder(folder: Path) -> tuple[list[tuple[str, int]], tuple[str, ...], str]:
    """Pictures with their classes, the classes' names, and what was left out."""
    found = sorted(_files_below(folder))
    pictures = [file for file in found if file.suffix[1:].lower() in IMAGES and len(file.parts) > 1]
    if not pictures:
        raise ValueError(f"{folder}: no pictures (.jpg, .jpeg, .png) in sub-folders, of which each is a class")
    names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    if empty := set(names) - {file.parts[0] for file in pictures}:
        raise ValueError(f"{folder}: no pictures (.jpg, .jpeg, .png) in the class {min(empty)!r}; fill or remove it")
    numbers = {name: number for number, name in enumerate(names)}
    others = Counter(file.suffix or file.name for file in set(found) - set(pictures))
    left_out = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common())
    return [(str(file), numbers[file.parts[0]]) for file in pictures], names, left_out


def _files_below(folder: Path) -> Iterator[PurePosixPath]:
    for here, _, files in os.walk(folder, followlinks=True):
        for file in files:
            yield PurePosixPath(os.path.relpath(os.path.join(here, file), folder))


def _as_listed(labels: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Pictures with their classes as a file lists them, and the classes' names if they are no numbers."""
    try:
        listed = _read_json(labels) if labels.suffix.lower() == ".json" else _read_csv(labels)
    except (KeyError, TypeError, ValueError):
        listed = []
    if not listed:
        raise ValueError(
            f'{labels}: not a list of labels; it is CSV with the columns "file,class", '
            'or JSON: {"labels": [["file", number], ...]}'
        )
    if all(label.isdecimal() for _, label in listed):
        return [(file, int(label)) for file, label in listed], ()
    names = tuple(sorted({label for _, label in listed}))
    numbers = {name: number for number, name in enumerate(names)}
    return [(file, numbers[label]) for file, label in listed], names


def _read_csv(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [(row["file"], row["class"].strip()) for row in csv.DictReader(file)]


def _read_json(path: Path) -> list[tuple[str, str]]:
    return [(file, str(int(label))) for file, label in json.loads(path.read_text(encoding="utf-8"))["labels"]]
