"""What a training loop may know of the world: `LocalRuntime` is one process, `on_ray.runtime` a Ray worker."""

from typing import Protocol

import torch
from torch import Tensor

from .stopping import StopSignal


class Runtime(Protocol):
    """Rank, size, device and the few collectives that training needs."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over ranks, in place."""

    def barrier(self) -> None:
        """Returns when every rank has come here."""

    def stop_signal(self) -> int | None:
        """The signal number, on every rank alike, once the run was asked to end at the next step; None before."""


class LocalRuntime:
    """One process, no network."""

    rank, world_size = 0, 1

    def __init__(self, device: str | torch.device | None = None, stop: StopSignal | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._stop = stop

    def all_reduce(self, tensor: Tensor) -> None:
        """The sum over one rank is the tensor itself."""

    def barrier(self) -> None:
        """Nobody to wait for."""

    def stop_signal(self) -> int | None:
        """SIGTERM or SIGINT once this process has been sent it."""
        return self._stop.received if self._stop else None


def mean_over_ranks(runtime: Runtime, value: Tensor) -> Tensor:
    """The mean of a tensor over ranks; every rank's share of the batch has the same size."""
    total = value.clone()
    runtime.all_reduce(total)
    return total / runtime.world_size
