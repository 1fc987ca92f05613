"""Two sets of vectors as one stream of pairs: sample i is a data vector and a noise vector, a function of its position.

A `Batch` holds them as x (B, 2, D) in float32, data first.
"""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..tasks.task import Batch
from .shards import keyed_hash, order, rank_share

_FRESH = 4  # what a hash is used for; `shards.py` has the others
_BLOCK = 1024  # fresh pairs that one generator draws: a generator for each would take longer than a training step

Draw = Callable[[int, torch.Generator], Tensor]  # number of vectors, generator -> (number, D)
Chunk = Callable[[int], Tensor]  # number of the chunk -> its rows


class VectorPairs:
    """Fixed sets p (n, D) and q (m, D), each in a new order in every epoch of its own."""

    def __init__(self, p: Tensor, q: Tensor):
        self.p, self.q = p.float(), q.float()

    @property
    def num_distinct(self) -> int:
        """The vectors of the smaller side: from then on it repeats."""
        return min(len(self.p), len(self.q))

    @property
    def digest(self) -> str:
        """Identifies the vectors; hexadecimal sha256."""
        return hashlib.sha256(self.p.numpy().tobytes() + self.q.numpy().tobytes()).hexdigest()

    def batches(
        self,
        seed: int,
        start_samples_seen: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 0,
    ) -> Iterator[Batch]:
        """One rank's endless batches after `start_samples_seen` pairs; the order of an epoch is `shards.order`."""
        p, q = (_kept(partial(_shuffled, side, seed + which)) for which, side in enumerate((self.p, self.q)))
        for seen in count(start_samples_seen, global_batch):
            positions = rank_share(seen, global_batch, rank, world_size, micro_batch)
            pairs = rows_at(p, len(self.p), positions), rows_at(q, len(self.q), positions)
            yield Batch(torch.stack(pairs, dim=1), None)


class FreshPairs:
    """Pairs that never come again: independent draws from p and q, in blocks with a generator each."""

    num_distinct = math.inf

    def __init__(self, draw_p: Draw, draw_q: Draw, name: str):
        self._draws, self.digest = (draw_p, draw_q), hashlib.sha256(name.encode()).hexdigest()

    def batches(
        self,
        seed: int,
        start_samples_seen: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 0,
    ) -> Iterator[Batch]:
        """One rank's endless batches after `start_samples_seen` pairs."""
        block = _kept(partial(self._block, seed))
        for seen in count(start_samples_seen, global_batch):
            yield Batch(rows_at(block, _BLOCK, rank_share(seen, global_batch, rank, world_size, micro_batch)), None)

    def _block(self, seed: int, number: int) -> Tensor:
        key = int(keyed_hash(np.array([number]), seed, _FRESH)[0]) >> 1
        generator = torch.Generator().manual_seed(key)
        return torch.stack([draw(_BLOCK, generator) for draw in self._draws], dim=1).float()


def rows_at(chunk: Chunk, length: int, positions: range) -> Tensor:
    """Some consecutive rows of an endless sequence that is made in chunks of so many rows."""
    numbers = range(positions.start // length, (positions.stop - 1) // length + 1)
    parts = [chunk(n)[max(positions.start - n * length, 0) : positions.stop - n * length] for n in numbers]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _kept(chunk: Chunk) -> Chunk:
    """The same, with the last two remembered: consecutive batches meet one or two."""
    return lru_cache(maxsize=2)(chunk)


def _shuffled(side: Tensor, seed: int, epoch: int) -> Tensor:
    return side[torch.from_numpy(order(seed, epoch, len(side)).copy())]


def read_pairs(path: str | Path) -> tuple[Tensor, Tensor]:
    """The arrays `p` (n, D) and `q` (m, D) of an npz file as float32; nothing of it is unpickled.

    Raises FileNotFoundError or ValueError with one line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give an npz with float arrays p (n, d) and q (m, d)")
    try:
        with np.load(path, allow_pickle=False) as file:
            p, q = (_checked(path, name, file[name]) for name in ("p", "q"))
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}; give float arrays p (n, d) and q (m, d)") from None
    if p.shape[1] != q.shape[1]:
        raise ValueError(f"{path}: p has {p.shape[1]} dimensions and q {q.shape[1]}; they must be equal")
    return p, q


def _checked(path: str | Path, name: str, array: np.ndarray) -> Tensor:
    if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) < 2:
        raise ValueError(f"{name} is {array.dtype} {array.shape}")
    vectors = torch.from_numpy(array.astype(np.float32))
    if not vectors.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    return vectors
