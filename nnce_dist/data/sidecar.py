"""Indexes that lie beside their shards: `a.tar.index.npz` beside `a.tar`, on a disk or in a store."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..config.schema import S3
from .cache import copy_uncompressed, is_compressed
from .index import SUFFIX, ShardIndex, index_shard
from .parallel import spread
from .store import Blob, Store, local_path, open_store, scheme_of


def stored_index(blob: Blob, store: Store) -> ShardIndex | None:
    """The index beside a shard, or None when there is none that belongs to the shard as it is now.

    It must tell the shard's size and, on a disk, not be older; a copy of the shard can be checked by its sha256. In a
    store a set may have come in any order, see `_is_older`.
    """
    url = blob.url + SUFFIX
    try:
        if scheme_of(url) == "file" and os.stat(local_path(url)).st_mtime_ns < int(blob.version):
            return None
        index = ShardIndex.from_bytes(store.read(url))
    except FileNotFoundError:
        return None
    return index if index and index.stored_bytes == blob.size else None


def add_indexes(urls: Sequence[str], settings: S3, processes: int, on_progress: Callable[[int], None]) -> list[str]:
    """Stores the index of every shard that has no valid one, and gives the URLs of the shards that had.

    One that is older than its shard counts as none, wherever it lies: the shard may have been replaced by another. Each
    shard is read once, `processes` at a time; `on_progress` hears how many shards are done. Raises ValueError or
    OSError with one line.
    """
    had, done = [], 0
    on_progress(done)
    for found in _spread(urls, settings, processes, store_it=True):
        had += [found.url] if found.was_there else []
        on_progress(done := done + 1)
    return sorted(had)


def indexes_of(urls: Sequence[str], settings: S3, processes: int) -> list[ShardIndex]:
    """The index of every shard, from beside it or by reading it; stores nothing. Raises as `add_indexes`."""
    found = {one.url: one.index for one in _spread(urls, settings, processes, store_it=False)}
    return [found[url] for url in urls]


@dataclass(frozen=True)
class _Found:
    url: str
    index: ShardIndex
    was_there: bool


def _spread(urls: Sequence[str], settings: S3, processes: int, store_it: bool) -> Iterator[_Found]:
    open_store(urls, settings)  # refuses a mixture before anything is read
    return spread(_Indexer(urls[0], settings, store_it), urls, min(processes, len(urls)))


@dataclass(frozen=True)
class _Indexer:
    """What each process does."""

    first_url: str
    settings: S3
    store_it: bool

    @cached_property
    def _store(self) -> Store:
        return open_store([self.first_url], self.settings)

    def __call__(self, url: str) -> _Found:
        blob, _ = self._store.peek(url, 1)
        index = stored_index(blob, self._store)
        if index and not (self.store_it and _is_older(url, self._store)):
            return _Found(url, index, was_there=True)
        index = read_index(blob, self._store)
        if self.store_it:
            self._store.put(url + SUFFIX, index.to_bytes())
        return _Found(url, index, was_there=False)


def _is_older(url: str, store: Store) -> bool:
    """Whether an index in a store was there before its shard as it is now."""
    return store.stored_at(url + SUFFIX) < store.stored_at(url)


def read_index(blob: Blob, store: Store) -> ShardIndex:
    """The index of a shard, made by reading it once; nothing is kept. Raises ValueError or OSError with one line."""
    if scheme_of(blob.url) == "file" and not is_compressed(blob.url):
        return index_shard(Path(local_path(blob.url)), blob.url)
    with tempfile.TemporaryFile() as file:  # it has no name, so that nothing of it stays after a kill
        copy_uncompressed(blob, store, file)
        file.flush()
        return index_shard(Path(f"/proc/self/fd/{file.fileno()}"), blob.url, blob.size)
