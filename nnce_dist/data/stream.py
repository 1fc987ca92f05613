"""The training stream: pictures of indexed shards in the order of `shards.py`; its state is `samples_seen` alone."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import closing
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Data
from ..tasks.task import Batch
from . import counters
from .bad_samples import SKIPPED, BadSamples
from .cache import ShardCache
from .decoding import Decoder, Decoders
from .first_stage import FirstStage
from .index import ShardSet
from .opening import find_indexes, identify
from .parallel import DaemonPool
from .pictures import Pictures, to_unit
from .shards import Order, flips, mixing_window, rank_share
from .shelf import ShardShelf
from .store import expand, open_store

Arrays = tuple[np.ndarray, np.ndarray]  # pictures (B, 3, H, W) and labels (B,)

_log = logging.getLogger(__name__)

_MUCH = 2**30  # bytes to be fetched before the first batch, of which the user is told
_BATCH_DEADLINE = 300.0  # seconds for one batch to be read and decoded, once its shards are there


def open_stream(
    pattern: str,
    data: Data,
    cache_dir: str | Path,
    train: bool,
    skipped: Path | None = None,
    say: Callable[[str], None] = _log.info,
) -> "ShardSource":
    """Finds the indexes of the shards of a pattern and opens them as a stream; shards are copied when they are needed.

    Copies of shards of S3 and of .tar.gz files go into `cache_dir`, and so do indexes that do not lie beside their
    shard. Bad samples that `data.on_error` tolerates are listed in the file `skipped`, by default in `cache_dir`.
    Raises ValueError or OSError with one line for everything that is wrong with the pattern, the store or the shards.
    """
    urls = expand(pattern)
    store = open_store(urls, data.s3)
    cache = ShardCache(cache_dir, store, deadline=2 * data.s3.timeout, max_bytes=data.cache_bytes)
    found = identify(urls, store, Path(cache_dir), say)
    indexes = find_indexes(found, store, cache, say)
    shards = ShardSet(urls, indexes, ShardShelf(found.shards, indexes, cache))
    shards.require_classes(data.num_classes)
    bad = BadSamples(shards, data.on_error, skipped or Path(cache_dir) / SKIPPED)
    return ShardSource(shards, data, train, bad)


class ShardSource:
    """An indexed shard set as batches, as plain arrays, or as the first stage of a `wds.DataPipeline`."""

    def __init__(self, shards: ShardSet, data: Data, train: bool, bad: BadSamples):
        self._shards, self._bad = shards, bad
        self._flip = train and data.flip
        self._takes = data.image_size, data.resize
        self._workers = data.loader_workers
        sizes = np.array([index.num_bytes for index in shards.indexes])
        self._window = mixing_window(sizes, data.cache_bytes, data.shuffle_bytes) if train else 0
        self._order = Order(np.array([len(index) for index in shards.indexes]), sizes, self._window, shuffle=train)
        # a window, a quarter of it ahead, a shard at either end and the batches in work fit two windows' room
        self._ahead = int(len(shards) * (self._window / 4 / sizes.sum() if self._window else 1))
        self._pictures = Pictures(shards, data.image_size, data.resize, bad)
        self.num_classes = data.num_classes

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def digest(self) -> str:
        """Identifies the samples and their order, wherever the shards lie; hexadecimal sha256."""
        return self._shards.digest + (f"-mixed-{self._window}" if self._window else "")

    @property
    def label_counts(self) -> Tensor:
        """How many samples each class has, int64 (num_classes,)."""
        return torch.from_numpy(np.bincount(self._shards.labels, minlength=self.num_classes))

    def batches(
        self,
        seed: int,
        start_samples_seen: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 0,
    ) -> Iterator[Batch]:
        """One rank's endless batches after `start_samples_seen` samples of the run.

        The global batches depend on the seed and the position only, so any number of ranks can go on where others
        stopped, each with its `rank_share`. Pictures are float32 (B, 3, H, W) in [-1, 1], decoded ahead by
        `loader_workers`. Raises ValueError when the set is smaller than a batch, or ranks cannot share one.
        """
        if len(self) < global_batch:
            raise ValueError(
                f"{self._shards.urls[0]} ...: {len(self)} samples are fewer than one global batch of {global_batch}; "
                "use more shards or a smaller batch"
            )
        share = partial(rank_share, size=global_batch, rank=rank, world_size=world_size, micro_batch=micro_batch)
        share(start_samples_seen)  # a wrong division fails here, not at the first batch
        if rank == 0:
            self._tell_of_a_wait(seed, range(start_samples_seen, start_samples_seen + global_batch))
        shares = self._shares(seed, count(start_samples_seen, global_batch), global_batch, share)
        if not self._workers:
            return _timed((self._arrays(seed, share) for share in shares), shares)
        most = len(share(start_samples_seen))
        start_decoder = None if self._pictures.are_kept else partial(self._pictures.decoder, most)
        make, wait_for_shards = partial(self._arrays, seed), partial(self._wait, seed)
        return _timed(_ahead(make, wait_for_shards, shares, self._workers, start_decoder), shares)

    def _tell_of_a_wait(self, seed: int, first_batch: range) -> None:
        """Says so where much must be fetched before there is a first batch, and what would make it less."""
        shards = self._order.shards_at(seed, first_batch)
        if (absent := self._shards.shelf.absent_bytes(shards)) > _MUCH:
            _log.warning(
                f"the first batch is drawn from {len(shards):,} of {len(self._shards.urls):,} shards and waits until "
                f"{absent / 1e9:.1f} GB of them are copied; data.shuffle_bytes bounds that: in all epochs, samples are "
                "then mixed over so many bytes of shards instead of all"
            )

    def _shares(
        self, seed: int, starts: Iterable[int], global_batch: int, share: Callable[[int], range]
    ) -> Iterator[range]:
        """The positions of this rank's batches; the shards of those and of the coming ones are fetched and held."""
        held_until, reader = -1, object()
        try:
            for seen in starts:
                if seen + global_batch > held_until:
                    in_work = max(seen - (self._workers + 1) * global_batch, 0)
                    end = seen + global_batch + self._ahead
                    self._shards.shelf.want(self._order.shards_at(seed, range(in_work, end)), reader)
                    held_until = end - self._ahead // 2 if self._window else math.inf
                yield share(seen)
        finally:
            self._shards.shelf.want((), reader)

    def _wait(self, seed: int, positions: range) -> None:
        """Until the shards of these positions are there, under the shelf's own deadline."""
        self._shards.shelf.wait_for(self._order.shards_at(seed, positions))

    def raw(self, samples: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Pictures uint8 (N, 3, H, W) and labels int64 (N,) of the samples with these numbers; all by default."""
        numbers = np.arange(len(self)) if samples is None else np.asarray(samples, np.int64)
        pixels, labels = self._read(numbers)
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    def first_stage(self, seed: int, start_samples_seen: int = 0, rank: int = 0, world_size: int = 1) -> FirstStage:
        """The same order as encoded samples, to start a `wds.DataPipeline` with."""
        start = start_samples_seen + rank
        return FirstStage(self._shards, self._order, self._bad, *self._takes, seed, start, world_size)

    def _arrays(self, seed: int, positions: range, decoder: Decoder | None = None) -> Arrays:
        ids = self._order.samples_at(seed, positions)
        pixels, labels = self._read(ids, decoder)
        if self._flip:
            mirrored = flips(seed, positions)
            pixels[mirrored] = pixels[mirrored][..., ::-1]
        return to_unit(pixels), labels

    def _read(self, ids: np.ndarray, decoder: Decoder | None = None) -> Arrays:
        """Pixels and labels of the samples with these numbers, or of those in a bad one's place."""
        pixels = self._pictures.read(ids, decoder)
        used = self._pictures.used[ids]
        counters.add("skipped_samples", np.count_nonzero(used != ids))
        return pixels, self._shards.labels[used]


def _timed(made: Iterator[Arrays], shares: Iterator[range]) -> Iterator[Batch]:
    """What was made of the shares as batches; counts how long each was waited for."""
    with closing(shares), closing(made):  # an error that somebody keeps would keep them open
        while True:
            start = time.perf_counter()
            pixels, labels = next(made)
            counters.add("wait_seconds", time.perf_counter() - start)
            yield Batch(torch.from_numpy(pixels), torch.from_numpy(labels))


def _ahead(
    make: Callable[[range, Decoder | None], Arrays],
    wait_for_shards: Callable[[range], None],
    shares: Iterator[range],
    workers: int,
    start_decoder: Callable[[], Decoder] | None,
) -> Iterator[Arrays]:
    """What is made of the shares, in order, before it is asked for, by threads that have a process each to decode."""
    pool = DaemonPool(workers, "decode")
    with closing(Decoders(start_decoder, workers)) as decoders:

        def work(share: range) -> Arrays:
            with decoders.lent() as decoder:
                return make(share, decoder)

        waiting = deque((share, pool.submit(work, share)) for share in islice(shares, workers + 1))
        try:
            while True:
                share, batch = waiting.popleft()
                try:
                    arrays = _result(batch, partial(wait_for_shards, share))
                except CancelledError:  # a shard in a bad one's place, which only a reader that is done had announced
                    arrays = make(share, None)
                share = next(shares)
                waiting.append((share, pool.submit(work, share)))
                yield arrays
        finally:
            for _, batch in waiting:
                batch.cancel()


def _result(batch: "Future[Arrays]", wait_for_shards: Callable[[], None]) -> Arrays:
    while True:
        wait_for_shards()
        counted = counters.since_now()
        if wait((batch,), _BATCH_DEADLINE).done:  # `result(timeout)` would raise what a store that gave up raises, too
            return batch.result()
        if not counted()["fetched_bytes"]:  # else other readers needed the room of its shards, which come again
            raise TimeoutError(f"a batch took more than {_BATCH_DEADLINE:g} s to read and decode; check the local disk")
