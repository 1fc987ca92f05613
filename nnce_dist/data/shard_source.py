"""A shard set as a source: to be resized, cut into shards of another size, or copied between disk and S3."""

import hashlib
import json
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from ..config.schema import S3
from .cache import copy_uncompressed, is_compressed
from .index import ShardIndex, ShardSet
from .sidecar import indexes_of
from .source import DESCRIPTION, Sample, Source
from .store import Store, local_path, open_store, scheme_of
from .tar import IMAGES


def shard_source(urls: Sequence[str], settings: S3, processes: int) -> Source:
    """All samples of the shards, in their order. Shards without an index are read once to know what is in them.

    Raises ValueError or OSError with one line.
    """
    store = open_store(urls, settings)
    indexes = indexes_of(urls, settings, processes)
    labels = np.concatenate([index.labels for index in indexes])
    digest = hashlib.sha256("\n".join(index.sha256 for index in indexes).encode()).hexdigest()
    names = _class_names(urls[0], store)
    num_classes = len(names) or int(labels.max()) + 1
    return Source(_Members(urls, indexes, store), f"shards, sha256 {digest}", num_classes, names)


def _class_names(url: str, store: Store) -> tuple[str, ...]:
    try:
        return tuple(json.loads(store.read(f"{url.rpartition('/')[0]}/{DESCRIPTION}"))["class_names"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


class _Members:
    """The samples, read forward: a local copy of the current shard is kept, nameless, and nothing else."""

    def __init__(self, urls: Sequence[str], indexes: Sequence[ShardIndex], store: Store):
        self._urls, self._indexes, self._store = urls, indexes, store
        self._ends = np.cumsum([len(index) for index in indexes]).tolist()
        self._current: tuple[int, ShardSet] | None = None

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, part: slice) -> list[Sample]:
        return [self._sample(number) for number in range(*part.indices(len(self)))]

    def _sample(self, number: int) -> Sample:
        shard = bisect_right(self._ends, number)
        row = number - self._ends[shard] + len(self._indexes[shard])
        here = self._open(shard)
        members = here.members(row)
        picture = next(members.pop(extension) for extension in IMAGES if extension in members)
        return Sample(here.name(row), picture, members)

    def _open(self, shard: int) -> ShardSet:
        """The shard alone, whole and as its index says."""
        if self._current is None or self._current[0] != shard:
            url, index = self._urls[shard], self._indexes[shard]
            file = _copy(url, self._store)
            if hashlib.file_digest(file, "sha256").hexdigest() != index.sha256:
                raise ValueError(f"{url}: not what its index tells; run `nnce index` on it, or copy it again")
            self._current = shard, ShardSet([url], [index], _OpenShard(file))
        return self._current[1]


class _OpenShard:
    """The one shard of a set; see `index.Shelf`."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """See `index.Shelf.read`."""
        self._file.seek(offset)
        return self._file.read(size)

    def discard(self, shard: int) -> bool:
        """Nothing was copied that could be copied again."""
        return False


def _copy(url: str, store: Store) -> BinaryIO:
    """An open file with the plain tar."""
    if scheme_of(url) == "file" and not is_compressed(url):
        return open(local_path(url), "rb")
    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the source)
    copy_uncompressed(store.peek(url, 1)[0], store, file)
    file.seek(0)
    return file
