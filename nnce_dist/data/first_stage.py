"""The exact order as a source of webdataset samples, so that a user's own webdataset steps can follow it."""

from collections.abc import Iterator
from itertools import count

from torch.utils.data import IterableDataset, get_worker_info

from .bad_samples import BadSamples
from .index import ShardSet
from .shards import Order

_BLOCK = 1024  # positions looked up at a time


class FirstStage(IterableDataset):
    """Endless samples `{"__key__", "__url__", "jpg": bytes, "cls": bytes, ...}` at every `step`-th global position.

    `wds.DataPipeline(source.first_stage(seed), wds.decode("pil"), wds.to_tuple("jpg", "cls"), wds.batched(64))`.
    In a DataLoader the workers take the positions in turn, so the samples' order is the same for any number of workers.
    """

    def __init__(self, shards: ShardSet, order: Order, bad: BadSamples, seed: int, start: int, step: int):
        super().__init__()
        self._shards, self._order, self._bad, self._seed = shards, order, bad, seed
        self._start, self._step = start, step

    def __iter__(self) -> Iterator[dict[str, bytes | str]]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        start, step = self._start + number * self._step, self._step * num_workers
        for block in count(start, _BLOCK * step):
            positions = range(block, block + _BLOCK * step, step)
            self._shards.shelf.want(self._order.shards_at(self._seed, positions))
            for sample in self._order.samples_at(self._seed, positions):
                yield self._bad.readable(int(sample), self._sample)[1]

    def _sample(self, sample: int) -> dict[str, bytes | str]:
        url, key = self._shards.identity(sample)
        return {"__key__": key, "__url__": url, **self._shards.members(sample)}
