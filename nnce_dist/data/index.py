"""The index of a shard: where each sample's bytes lie and its label, so that training never walks a tar archive."""

import hashlib
import json
import operator
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .tar import IMAGES, Member, members, samples

_VERSION = 1
SUFFIX = ".index.npz"  # beside a shard: train-000000.tar.index.npz


@dataclass(frozen=True)
class ShardIndex:
    """What one pass over a shard found."""

    keys: np.ndarray  # (N,) names of the samples
    extensions: tuple[str, ...]  # (E,) members that occur in the shard
    spans: np.ndarray  # (N, E, 2) int64: offset and size of each member, size -1 where a sample has none
    labels: np.ndarray  # (N,) int64
    sha256: str  # of the whole (uncompressed) shard
    num_bytes: int  # of the whole (uncompressed) shard

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def image_spans(self) -> np.ndarray:
        """Offset and size of each sample's picture, int64 (N, 2)."""
        columns = [number for number, extension in enumerate(self.extensions) if extension in IMAGES]
        pictures = self.spans[:, columns]  # (N, pictures, 2): exactly one of them has a size
        return np.take_along_axis(pictures, pictures[:, :, 1].argmax(1)[:, None, None], axis=1)[:, 0]

    def save(self, file: BinaryIO) -> None:
        """Writes the index as npz (no pickle)."""
        np.savez_compressed(
            file,
            version=_VERSION,
            keys=self.keys,
            extensions=np.array(self.extensions),
            spans=self.spans,
            labels=self.labels,
            sha256=self.sha256,
            num_bytes=self.num_bytes,
        )

    @classmethod
    def load(cls, path: Path, shard: Path) -> "ShardIndex | None":
        """A stored index, or None when there is none of this format that belongs to the shard as it is now."""
        try:
            if path.stat().st_mtime_ns < shard.stat().st_mtime_ns:
                return None
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["version"]) != _VERSION or int(stored["num_bytes"]) != shard.stat().st_size:
                    return None
                fields = {name: stored[name] for name in ("keys", "spans", "labels")}
                extensions = tuple(str(extension) for extension in stored["extensions"])
                return cls(
                    **fields, extensions=extensions, sha256=str(stored["sha256"]), num_bytes=int(stored["num_bytes"])
                )
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None  # an index can always be made again from its shard


def index_shard(path: Path, name: str) -> ShardIndex:
    """Reads a shard once and strictly. `name` is what error messages call it; they are ValueErrors of one line."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = list(samples(members(file, name), name))
        if not found:
            raise ValueError(f"{name}: the shard holds no samples (pictures .jpg or .png, each with .cls or .json)")
        labels = np.array([read_label(file, sample, name) for sample in found], np.int64)
    extensions = tuple(sorted({extension for sample in found for extension in sample}))
    keys = np.array([next(iter(sample.values())).key for sample in found])
    return ShardIndex(keys, extensions, _spans(found, extensions), labels, digest, path.stat().st_size)


def read_label(file: BinaryIO, sample: Mapping[str, Member], name: str) -> int:
    """A sample's class number: an integer in .cls, else `label` in .json. Raises ValueError with one line."""
    member = sample.get("cls") or sample["json"]
    file.seek(member.offset)
    content = file.read(member.size)
    try:
        return int(content) if member.extension == "cls" else operator.index(json.loads(content)["label"])
    except (ValueError, KeyError, TypeError):
        wanted = "a class number" if member.extension == "cls" else 'an object with an integer "label"'
        raise ValueError(f"{name}: sample {member.key!r}: .{member.extension} must hold {wanted}") from None


def _spans(found: Sequence[Mapping[str, Member]], extensions: tuple[str, ...]) -> np.ndarray:
    nothing = Member("", "", 0, -1)
    columns = [[sample.get(extension, nothing) for extension in extensions] for sample in found]
    return np.array([[(member.offset, member.size) for member in row] for row in columns], np.int64)


class ShardSet:
    """Shards in the order of their pattern; samples are numbered through."""

    def __init__(self, urls: Sequence[str], paths: Sequence[Path], indexes: Sequence[ShardIndex]):
        self.urls, self.paths, self.indexes = list(urls), list(paths), list(indexes)
        self._starts = np.cumsum([0] + [len(index) for index in indexes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def digest(self) -> str:
        """Identifies the samples and their order, wherever the shards lie; hexadecimal sha256."""
        return hashlib.sha256("\n".join(index.sha256 for index in self.indexes).encode()).hexdigest()

    @cached_property
    def labels(self) -> np.ndarray:
        """The class number of each sample, int64 (N,)."""
        return np.concatenate([index.labels for index in self.indexes])

    def place(self, sample: int) -> tuple[int, int]:
        """The number of the shard that holds the sample, and the sample's row in its index."""
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return shard, int(sample - self._starts[shard])

    def identity(self, sample: int) -> tuple[str, str]:
        """The URL of the sample's shard and its key there."""
        shard, row = self.place(sample)
        return self.urls[shard], str(self.indexes[shard].keys[row])

    def name(self, sample: int) -> str:
        """What messages call a sample."""
        url, key = self.identity(sample)
        return f"{url}: sample {key!r}"

    def picture(self, sample: int) -> bytes:
        """The encoded picture."""
        shard, row = self.place(sample)
        return self._read(shard, self.indexes[shard].image_spans[row])

    def members(self, sample: int) -> dict[str, bytes]:
        """All members of a sample that the index knows, by extension."""
        shard, row = self.place(sample)
        index = self.indexes[shard]
        spans = zip(index.extensions, index.spans[row], strict=True)
        return {extension: self._read(shard, span) for extension, span in spans if span[1] >= 0}

    def require_classes(self, num_classes: int) -> None:
        """Raises ValueError, naming the first sample, when a label is outside 0..num_classes-1."""
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if len(outside):
            raise ValueError(outside_classes(self.name(outside[0]), int(self.labels[outside[0]]), num_classes))

    def _read(self, shard: int, span: np.ndarray) -> bytes:
        offset, size = int(span[0]), int(span[1])
        with open(self.paths[shard], "rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise ValueError(f"{self.urls[shard]}: shorter than when it was indexed; was it overwritten?")
        return content


def outside_classes(name: str, label: int, num_classes: int) -> str:
    """The line for a label that the model has no class for."""
    return f"{name} has label {label}, outside 0..{num_classes - 1}; set data.num_classes or check the labels"
