"""Dropout whose masks belong to the sample: a hash of its key, of the layer's turn and of the place in the feature map.

So a sample meets the same masks on any rank, in any micro-batch and on any device, where a generator's draws depend on
the shape and order of all that it is asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 1 << 16  # of a uniform draw: a hash of 32 bits makes two


class _Keys:
    """The samples of the batch that is in the network now, and how many layers have drawn for them."""

    def __init__(self, make: Callable[[], Tensor]):
        self._make, self._turn = make, 0

    @cached_property
    def _keys(self) -> Tensor:
        return self._make()

    def next(self, num_rows: int) -> Tensor:
        """A key (num_rows, 1) per row for the next layer; a sample's rows lie side by side."""
        repeats, left = divmod(num_rows, len(self._keys))
        if left:
            raise ValueError(f"dropout: {num_rows} rows do not belong to {len(self._keys)} samples")
        turn, self._turn = self._turn, self._turn + repeats
        turns = mixed(torch.arange(turn, turn + repeats, dtype=torch.int32, device=self._keys.device))
        return (self._keys[:, None] ^ turns).flatten()[:, None]


_owner: ContextVar[_Keys | None] = ContextVar("dropout", default=None)


@contextmanager
def belonging_to(keys: Callable[[], Tensor]) -> Iterator[None]:
    """Within the block, row i of a batch belongs to the sample with key i of `keys()` (b,) int32, asked for at need."""
    token = _owner.set(_Keys(keys))
    try:
        yield
    finally:
        _owner.reset(token)


def mixed(x: Tensor) -> Tensor:
    """A well-mixed permutation of int32 (lowbias32 of Wellons' hash prospector); shifts are of unsigned numbers."""
    x = (x ^ (x >> 16 & 0xFFFF)).mul_(0x7FEB352D)
    x ^= x >> 15 & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= x >> 16 & 0xFFFF
    return x


def kept(keys: Tensor, size: int, p: float) -> Tensor:
    """Which of `size` places stay, with probability 1 - p, to 2^-16: bool (rows, size) for keys (rows, 1) int32."""
    places = mixed(torch.arange((size + 1) // 2, dtype=torch.int32, device=keys.device))
    draws = mixed(keys ^ places).view(torch.int16)[:, :size]
    return draws >= round(p * _LEVELS) - _LEVELS // 2


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x (B, ...) with entries set to 0 with probability p and the others divided by 1 - p, while training.

    Outside of `belonging_to` the draws are those of torch's generator.
    """
    owner = _owner.get()
    if owner is None or not training or not p:
        return F.dropout(x, p, training)
    mask = kept(owner.next(len(x)), x[0].numel(), p).view_as(x)
    return x * mask * (1 / (1 - p))
