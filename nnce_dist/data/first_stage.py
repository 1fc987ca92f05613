"""The exact order as a source of webdataset samples, so that a user's own webdataset steps can follow it."""

from collections.abc import Iterator
from itertools import count

from torch.utils.data import IterableDataset, get_worker_info

from . import counters
from .bad_samples import BadSamples
from .images import decode
from .index import ShardSet
from .shards import Order
from .tar import IMAGES

_BLOCK = 1024  # positions looked up at a time


class FirstStage(IterableDataset):
    """Endless samples `{"__key__", "__url__", "jpg": bytes, "cls": bytes, ...}` at every `step`-th global position.

    `wds.DataPipeline(source.first_stage(seed), wds.decode("pil"), wds.to_tuple("jpg", "cls"), wds.batched(64))`.
    In a DataLoader the workers take the positions in turn, so the samples' order is the same for any number of workers.
    With `data.on_error=skip(k)` every picture is decoded here as training would, so that the same ones are left out and
    listed, and once more by the user: decoding costs twice as much. With `fail` the user's own decoding raises.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        bad: BadSamples,
        size: int,
        resize: bool,
        seed: int,
        start: int,
        step: int,
    ):
        super().__init__()
        self._shards, self._order, self._bad, self._seed = shards, order, bad, seed
        self._size, self._resize = size, resize  # what training takes
        self._start, self._step = start, step

    def __iter__(self) -> Iterator[dict[str, bytes | str]]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        start, step, reader = self._start + number * self._step, self._step * num_workers, object()
        try:
            for block in count(start, _BLOCK * step):
                positions = range(block, block + _BLOCK * step, step)
                self._shards.shelf.want(self._order.shards_at(self._seed, positions), reader)
                yield from map(self._readable, self._order.samples_at(self._seed, positions).tolist())
        finally:
            self._shards.shelf.want((), reader)

    def _readable(self, sample: int) -> dict[str, bytes | str]:
        used, content = self._bad.readable(sample, self._sample)
        if used != sample:
            counters.add("skipped_samples")
        return content

    def _sample(self, sample: int) -> dict[str, bytes | str]:
        (url, key), members = self._shards.identity(sample), self._shards.members(sample)
        if self._bad.tolerated:
            picture = next(content for extension, content in members.items() if extension in IMAGES)
            decode(picture, self._size, self._resize, self._shards.name(sample))
        return {"__key__": key, "__url__": url, **members}
