"""The seam between an experiment and the training loop.

A task says which networks get which loss, in the order of the paper's algorithm; `training/step.py` alone does
backward, accumulation over micro-batches, reduction over ranks, the finite check, clipping and the optimiser.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from .auto_magnitude import AutoMagnitude
from .objective import NoiseMagnitude


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    x: Tensor  # (B, C, H, W) images in [-1, 1], or (B, D) vectors
    labels: Tensor | None  # (B,) class numbers, None when the data has no classes

    def __len__(self) -> int:
        return len(self.x)


class Random(Protocol):
    """One random stream per sample, so that draws depend on the sample and the step, never on rank or micro-batch."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (B, *shape)."""

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), (B, *shape)."""

    def __getitem__(self, samples: slice) -> "Random":
        """The streams of some samples; they share their state with this object's."""

    def __len__(self) -> int:
        """The number of samples B."""


LossAndObservations = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Update:
    """One optimiser step on one network.

    `loss` maps a slice of the rank's `num_samples` samples to their losses (b,) and per-sample observations (b,) each,
    which the loop averages over samples, micro-batches and ranks and records as `<network>/<name>`.
    """

    network: str
    loss: Callable[[slice], LossAndObservations]
    num_samples: int


@dataclass(frozen=True)
class OptimiserSettings:
    """Adam, or one of its kin, on one network."""

    lr: float
    kind: str = "adam"  # or "radam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_samples: int = 0  # the learning rate rises linearly over so many samples
    decay_fraction: float = 0.0  # and falls linearly to 0 over this last part of the run
    clip_norm: float | None = None  # of the gradient over the whole network
    clip_value: float | None = None  # of each gradient entry
    ema_half_life: float | None = None  # in samples; None keeps no average
    ema_rampup: float = 0.05  # the half-life is at most this fraction of the samples seen; 0 switches that off
    lr_scales: Mapping[str, float] = field(default_factory=dict)  # parameter-name prefix -> factor on lr


class Task(Protocol):
    """What an experiment must offer. `tasks/registry.py` lists them."""

    networks: Mapping[str, nn.Module]  # the trained networks by name; frozen ones stay out
    optimisers: Mapping[str, OptimiserSettings]  # one entry per trained network

    def updates(
        self, batch: Batch, random: Random, samples_seen: int, mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> Iterator[Update]:
        """The optimiser steps of one iteration, in order; each is applied before the next is asked for."""

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors outside the networks that a checkpoint must hold."""

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `extra_state` gave."""


Numbers = Mapping[str, float | Tensor]


@runtime_checkable
class StackableTask(Task, Protocol):
    """A task of one network and one update without random draws, whose loss is a pure function.

    Trials of it that differ in M, `numbers`, learning rates and seeds alone can be stacked and stepped together
    (`training/packed.py`).
    """

    magnitude: NoiseMagnitude | AutoMagnitude  # where M comes from

    def numbers(self, m: float) -> Mapping[str, float]:
        """What the loss of a step at M = m takes from the trial's settings."""

    def loss(self, network: Callable[[Tensor], Tensor], x: Tensor, numbers: Numbers) -> LossAndObservations:
        """Losses (b,) and observations of samples x (b, ...); must also work on the tensors of `torch.vmap`."""
