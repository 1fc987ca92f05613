"""The index of a shard: where each sample's bytes lie and its label, so that training never walks a tar archive."""

import hashlib
import io
import json
import operator
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from .tar import IMAGES, Member, members, samples

_VERSION = 4
SUFFIX = ".index.npz"  # beside a shard: train-000000.tar.index.npz


@dataclass(frozen=True)
class ShardIndex:
    """What one pass over a shard found."""

    keys: np.ndarray  # (N,) names of the samples, UTF-8
    extensions: tuple[str, ...]  # (E,) members that occur in the shard
    spans: np.ndarray  # (N, E, 2) integers: offset and size of each member, size -1 where a sample has none
    labels: np.ndarray  # (N,) int64
    checksums: np.ndarray  # (N,) uint32: CRC-32 of each picture's bytes, checked whenever it is read
    sha256: str  # of the whole (uncompressed) shard
    num_bytes: int  # of the whole (uncompressed) shard
    stored_bytes: int  # of the shard as it lies in its store: fewer if it is compressed there

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def image_spans(self) -> np.ndarray:
        """Offset and size of each sample's picture, integers (N, 2)."""
        columns = [number for number, extension in enumerate(self.extensions) if extension in IMAGES]
        pictures = self.spans[:, columns]  # (N, pictures, 2): exactly one of them has a size
        return np.take_along_axis(pictures, pictures[:, :, 1].argmax(1)[:, None, None], axis=1)[:, 0]

    def to_bytes(self) -> bytes:
        """The index as an npz file (no pickle); equal indexes give equal bytes."""
        values = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        file = io.BytesIO()
        np.savez_compressed(file, version=_VERSION, **values)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "ShardIndex | None":
        """A stored index, or None when it is damaged or of another version: it can always be made again."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                if int(stored["version"]) != _VERSION:
                    return None
                arrays = {name: stored[name] for name in ("keys", "spans", "labels", "checksums")}
                sizes = {name: int(stored[name]) for name in ("num_bytes", "stored_bytes")}
                extensions = tuple(stored["extensions"].tolist())
                return cls(**arrays, **sizes, extensions=extensions, sha256=str(stored["sha256"]))
        except Exception:  # damaged archives make zipfile and numpy raise almost anything
            return None

    @classmethod
    def load(cls, path: Path, shard: Path) -> "ShardIndex | None":
        """The index in a file, or None when there is none that belongs to the local shard as it is now."""
        try:
            if path.stat().st_mtime_ns < shard.stat().st_mtime_ns:
                return None
            index = cls.from_bytes(path.read_bytes())
        except OSError:
            return None
        return index if index and index.num_bytes == shard.stat().st_size else None


def index_shard(path: Path, name: str, stored_bytes: int | None = None) -> ShardIndex:
    """Reads an uncompressed shard once and strictly; `stored_bytes` is its compressed size where it came from.

    `name` is what error messages call it; they are ValueErrors of one line.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = list(samples(members(file, name), name))
        if not found:
            raise ValueError(f"{name}: the shard holds no samples (pictures .jpg or .png, each with .cls or .json)")
        labels = np.array([read_label(file, sample, name) for sample in found], np.int64)
        checksums = np.array([_picture_checksum(file, sample) for sample in found], np.uint32)
    extensions = tuple(sorted({extension for sample in found for extension in sample}))
    keys = np.array([next(iter(sample.values())).key.encode() for sample in found])
    size = path.stat().st_size
    spans = _spans(found, extensions)
    return ShardIndex(keys, extensions, spans, labels, checksums, digest, size, stored_bytes or size)


def read_label(file: BinaryIO, sample: Mapping[str, Member], name: str) -> int:
    """A sample's class number: an integer in .cls, else `label` in .json. Raises ValueError with one line."""
    member = sample.get("cls") or sample["json"]
    file.seek(member.offset)
    content = file.read(member.size)
    try:
        label = int(content) if member.extension == "cls" else operator.index(json.loads(content)["label"])
        return int(np.int64(label))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        wanted = "a class number" if member.extension == "cls" else 'an object with an integer "label"'
        raise ValueError(f"{name}: sample {member.key!r}: .{member.extension} must hold {wanted}") from None


def _picture_checksum(file: BinaryIO, sample: Mapping[str, Member]) -> int:
    picture = next(member for extension, member in sample.items() if extension in IMAGES)
    file.seek(picture.offset)
    return zlib.crc32(file.read(picture.size))


def _spans(found: Sequence[Mapping[str, Member]], extensions: tuple[str, ...]) -> np.ndarray:
    nothing = Member("", "", 0, -1)
    columns = [[sample.get(extension, nothing) for extension in extensions] for sample in found]
    return np.array([[(member.offset, member.size) for member in row] for row in columns], np.int64)


class Shelf(Protocol):
    """Where the bytes of a set's shards are read."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """At most `size` bytes of a shard. Raises OSError or ValueError with one line."""

    def discard(self, shard: int) -> bool:
        """Forgets a copy that turned out damaged, so that it is made again; False where it is no copy."""


class ShardSet:
    """Shards in the order of their pattern; samples are numbered through.

    In memory a sample takes 85 bytes, with a name of 16 characters and two members, or 61 from the index of a set,
    whose places have 32 bits: 109 or 78 MB for ImageNet's 1.28 million.
    """

    def __init__(self, urls: Sequence[str], indexes: Sequence[ShardIndex], shelf: Shelf):
        self.urls, self.indexes, self.shelf = list(urls), list(indexes), shelf
        self._starts = [0, *accumulate(len(index) for index in indexes)]  # a list: looked up once per sample

    def __len__(self) -> int:
        return self._starts[-1]

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
        shard = bisect_right(self._starts, sample) - 1
        return shard, int(sample) - self._starts[shard]

    def number(self, shard: int, row: int) -> int:
        """The number of the sample at a row of a shard; both start again at 0 beyond the last."""
        shard %= len(self.urls)
        return self._starts[shard] + row % len(self.indexes[shard])

    def identity(self, sample: int) -> tuple[str, str]:
        """The URL of the sample's shard and its key there."""
        shard, row = self.place(sample)
        return self.urls[shard], self.indexes[shard].keys[row].decode()

    def name(self, sample: int) -> str:
        """What messages call a sample."""
        url, key = self.identity(sample)
        return f"{url}: sample {key!r}"

    def picture(self, sample: int) -> bytes:
        """The encoded picture, as it was indexed; ValueError where its bytes are others."""
        shard, row = self.place(sample)
        index = self.indexes[shard]
        span, checksum = index.image_spans[row], int(index.checksums[row])
        content = self._read(shard, span)
        if zlib.crc32(content) != checksum and self.shelf.discard(shard):
            content = self._read(shard, span)
        if zlib.crc32(content) != checksum:
            raise ValueError(
                f"{self.name(sample)}: its bytes are not those that were indexed; copy the shard again, or remove its "
                "index if the change was meant"
            )
        return content

    def members(self, sample: int) -> dict[str, bytes]:
        """All members of a sample that the index knows, by extension."""
        shard, row = self.place(sample)
        index = self.indexes[shard]
        spans = zip(index.extensions, index.spans[row], strict=True)
        return {
            extension: self.picture(sample) if extension in IMAGES else self._read(shard, span)
            for extension, span in spans
            if span[1] >= 0
        }

    def require_classes(self, num_classes: int) -> None:
        """Raises ValueError, naming the first sample, when a label is outside 0..num_classes-1."""
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
        if len(outside):
            raise ValueError(outside_classes(self.name(outside[0]), int(self.labels[outside[0]]), num_classes))

    def _read(self, shard: int, span: np.ndarray) -> bytes:
        offset, size = int(span[0]), int(span[1])
        content = self.shelf.read(shard, offset, size)
        if len(content) != size:
            raise ValueError(f"{self.urls[shard]}: shorter than when it was indexed; was it overwritten?")
        return content


def outside_classes(name: str, label: int, num_classes: int) -> str:
    """The line for a label that the model has no class for."""
    return f"{name} has label {label}, outside 0..{num_classes - 1}; set data.num_classes or check the labels"
