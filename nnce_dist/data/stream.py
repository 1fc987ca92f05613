"""The training stream: pictures of indexed shards in the order of `shards.py`; its state is `samples_seen` alone."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Data
from ..tasks.task import Batch
from .cache import ShardCache, make_once
from .first_stage import FirstStage
from .images import decode
from .index import SUFFIX, ShardIndex, ShardSet, index_shard
from .shards import flips, rank_share, samples_at
from .store import Blob, Store, expand, open_store

S = TypeVar("S")
T = TypeVar("T")

MEMORY_BOUND = 2**30  # sets of at most so many decoded bytes are kept decoded
_READERS = 8  # shards fetched and indexed at a time
_BATCH_DEADLINE = 300.0  # seconds for one batch to be decoded from the local disk


def open_stream(pattern: str, data: Data, cache_dir: str | Path, train: bool) -> "ShardSource":
    """Makes the shards of a pattern local and indexed, and opens them as a stream.

    Shards of S3 and .tar.gz files are copied into `cache_dir`; so are indexes that do not lie beside their shard.
    Raises ValueError or OSError with one line for everything that is wrong with the pattern, the store or the shards.
    """
    urls = expand(pattern)
    store = open_store(urls, data.s3)
    cache = ShardCache(cache_dir, store, deadline=2 * data.s3.timeout)
    blobs = _in_parallel(lambda url: _identify(url, store), urls)  # what is missing or denied fails before any download
    found = _in_parallel(lambda blob: _local_shard(blob, cache), blobs)
    shards = ShardSet(urls, [path for path, _ in found], [index for _, index in found])
    shards.require_classes(data.num_classes)
    return ShardSource(shards, data, train)


def _in_parallel(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """The results in order; after a failure nothing new is begun, and what was begun ends by its own deadline."""
    pool = ThreadPoolExecutor(min(_READERS, len(items)))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _identify(url: str, store: Store) -> Blob:
    blob, _ = store.peek(url, 1)
    if not blob.size:
        raise ValueError(f"{url}: the shard is empty (0 bytes); copy or make it again")
    return blob


def _local_shard(blob: Blob, cache: ShardCache) -> tuple[Path, ShardIndex]:
    path = cache.local(blob)
    stored = (path.with_name(path.name + SUFFIX), cache.entry(blob, SUFFIX))
    for place in stored:
        if (index := ShardIndex.load(place, path)) is not None:
            return path, index
    index = index_shard(path, blob.url)
    stored[1].unlink(missing_ok=True)  # unreadable or of another version
    make_once(stored[1], index.save, deadline=60.0)
    return path, index


class Pictures:
    """Decoded pictures of a shard set by number; kept in memory once decoded if all of them fit."""

    def __init__(self, shards: ShardSet, size: int, resize: bool):
        self._shards, self._size, self._resize = shards, size, resize
        shape = (len(shards), 3, size, size)
        self._kept = np.empty(shape, np.uint8) if np.prod(shape, dtype=np.int64) <= MEMORY_BOUND else None
        self._known = np.zeros(len(shards), bool)

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, 3, size, size) of the samples with these numbers (n,)."""
        if self._kept is None:
            return np.stack([self._decode(sample) for sample in samples])
        for sample in samples[~self._known[samples]]:
            self._kept[sample] = self._decode(sample)
            self._known[sample] = True  # only now: another thread may be reading
        return self._kept[samples]

    def _decode(self, sample: int) -> np.ndarray:
        return decode(self._shards.picture(sample), self._size, self._resize, self._shards.name(sample))


class ShardSource:
    """An indexed shard set as batches, as plain arrays, or as the first stage of a `wds.DataPipeline`."""

    def __init__(self, shards: ShardSet, data: Data, train: bool):
        self._shards, self._train = shards, train
        self._flip = train and data.flip
        self._threads = data.loader_threads
        self._pictures = Pictures(shards, data.image_size, data.resize)
        self.num_classes = data.num_classes

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def digest(self) -> str:
        """Identifies the samples and their order, wherever the shards lie; hexadecimal sha256."""
        return self._shards.digest

    @property
    def label_counts(self) -> Tensor:
        """How many samples each class has, int64 (num_classes,)."""
        return torch.from_numpy(np.bincount(self._shards.labels, minlength=self.num_classes))

    def batches(
        self, seed: int, start_samples_seen: int, global_batch: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """One rank's endless batches after `start_samples_seen` samples of the run.

        The global batches depend on the seed and the position only, so any number of ranks that divides the batch can
        go on where others stopped. Pictures are float32 (B, 3, H, W) in [-1, 1], decoded ahead by `loader_threads`.
        Raises ValueError when the set is smaller than a batch.
        """
        if len(self) < global_batch:
            raise ValueError(
                f"{self._shards.urls[0]} ...: {len(self)} samples are fewer than one global batch of {global_batch}; "
                "use more shards or a smaller batch"
            )
        rank_share(
            start_samples_seen, global_batch, rank, world_size
        )  # a wrong division fails here, not at the first batch
        shares = (rank_share(seen, global_batch, rank, world_size) for seen in count(start_samples_seen, global_batch))
        if not self._threads:
            return (self._batch(seed, share) for share in shares)
        return _ahead(lambda share: self._batch(seed, share), shares, self._threads)

    def raw(self, samples: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Pictures uint8 (N, 3, H, W) and labels int64 (N,) of the samples with these numbers; all by default."""
        numbers = np.arange(len(self)) if samples is None else np.asarray(samples, np.int64)
        return torch.from_numpy(self._pictures[numbers]), torch.from_numpy(self._shards.labels[numbers])

    def first_stage(self, seed: int, start_samples_seen: int = 0, rank: int = 0, world_size: int = 1) -> FirstStage:
        """The same order as encoded samples, to start a `wds.DataPipeline` with."""
        return FirstStage(self._shards, seed, self._train, start_samples_seen + rank, world_size)

    def _batch(self, seed: int, positions: range) -> Batch:
        ids = samples_at(seed, positions, len(self), shuffle=self._train)
        pixels = self._pictures[ids]
        if self._flip:
            mirrored = flips(seed, positions)
            pixels[mirrored] = pixels[mirrored][..., ::-1]
        return Batch(to_unit(torch.from_numpy(pixels)), torch.from_numpy(self._shards.labels[ids]))


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels 0..255 (uint8) as float32 in [-1, 1]: the inverse of clip(127.5 x + 128) cut to integers."""
    return pixels.float().div_(127.5).sub_(1)


def _ahead(make: Callable[[range], Batch], shares: Iterator[range], threads: int) -> Iterator[Batch]:
    """The batches in order, made by a few threads before they are asked for."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        waiting = deque(pool.submit(make, next(shares)) for _ in range(threads + 1))
        while True:
            batch = _result(waiting.popleft())
            waiting.append(pool.submit(make, next(shares)))
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(batch: Future) -> Batch:
    try:
        return batch.result(timeout=_BATCH_DEADLINE)
    except TimeoutError:
        raise TimeoutError(
            f"a batch took more than {_BATCH_DEADLINE:g} s to read and decode; check the local disk"
        ) from None
