"""What a training loop may know of the world: `LocalRuntime` is one process, `on_ray.runtime` a Ray worker."""

from typing import Protocol

import torch
from torch import Tensor

from .stopping import Stopped, StopSignal


class Runtime(Protocol):
    """Rank, size, device and the few collectives that training needs."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce(self, tensor: Tensor) -> None:
        """Replaces the tensor by its sum over ranks, in place."""

    def barrier(self) -> None:
        """Returns when every rank has come here."""

    def waited(self) -> float:
        """Seconds that this rank stood in collectives so far, most of them for slower ranks."""

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

    def waited(self) -> float:
        """Nobody was waited for."""
        return 0.0

    def stop_signal(self) -> int | None:
        """SIGTERM or SIGINT once this process has been sent it."""
        return self._stop.received if self._stop else None


def mean_over_ranks(runtime: Runtime, fraction: float, value: Tensor) -> Tensor:
    """The mean over the global batch of a tensor that is a mean over this rank's `fraction` of it."""
    total = value * fraction
    runtime.all_reduce(total)
    return total


def stop_if_asked(runtime: Runtime, where: str) -> None:
    """Raises `Stopped` once the run was asked to end. All ranks must call it equally often."""
    if number := runtime.stop_signal():
        raise Stopped(number, where)


def from_rank_zero(runtime: Runtime, number: int) -> int:
    """Rank 0's number, on every rank."""
    told = torch.tensor(number if runtime.rank == 0 else 0, device=runtime.device)
    runtime.all_reduce(told)
    return int(told)


def gathered(runtime: Runtime, value: Tensor) -> Tensor:
    """(world size, *shape): the tensors of all ranks, on every rank, to the bit."""
    whole = value.new_zeros(runtime.world_size, *value.shape)
    whole[runtime.rank] = value
    runtime.all_reduce(whole)
    return whole
