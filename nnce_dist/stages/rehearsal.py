"""A stage tried before anything starts: a step of it, what that records, how large its state is.

No shard is read and no folder made: pictures are noise of the right shape.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from typing import TypeVar

import torch
from torch import Tensor

from ..config.schema import Config, Network
from ..metrics.recorder import Recorder
from ..models.preconditioning import EDMPrecond
from ..tasks.task import Batch
from ..training.loop import iterate, to_device
from ..training.runtime import LocalRuntime
from ..training.state import TrainState
from . import build
from .learning import Learning
from .learnings import LEARNINGS
from .stacked import can_stack

_PER_PARAMETER = 3  # tensors that an optimiser has for it
_PER_TENSOR, _NUMBERS = 2**8, 2**12  # bytes of its name and place in a file; of all that is no tensor
CPU = torch.device("cpu")
T = TypeVar("T")


class _Noise:
    """A stream of pictures that are always the same ones."""

    digest = ""

    def __init__(self, config: Config):
        self._size, self._classes = config.data.image_size, config.data.num_classes

    def __len__(self) -> int:
        return self._classes

    def batches(self, seed: int, start_samples_seen: int, global_batch: int, *share: int) -> Iterator[Batch]:
        """The whole global batch, again and again."""
        x = torch.randn(global_batch, 3, self._size, self._size).clamp(-1, 1)
        return repeat(Batch(x, torch.arange(global_batch) % self._classes))


class _Understudy:
    """What a stage's learning asks of its job (`job.Job`)."""

    def __init__(self, config: Config, device: torch.device):
        self.config, self.data, self._device = config, _Noise(config), device

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives."""
        with CPU:
            return make()

    @property
    def teacher(self) -> EDMPrecond:
        """An untrained one, which takes as long."""
        return build.denoiser(self.config).eval().requires_grad_(False).to(self._device)


class TooSlowError(Exception):
    """A single step takes longer than measuring may."""


class _Watch(Recorder):
    """A recorder without sinks that ends a step which takes too long."""

    def __init__(self, deadline: float):
        super().__init__({}, 1)
        self._deadline = deadline

    def observe(self, network: str, observations: Mapping[str, Tensor]) -> None:
        """Called several times in a step."""
        super().observe(network, observations)
        if time.perf_counter() > self._deadline:
            raise TooSlowError


class Rehearsal:
    """A stage that is ready to step; its weights are fresh ones and stay so, whatever the learning rates do to them."""

    def __init__(self, config: Config, stage: str, device: torch.device, deadline: float):
        self.learning, self._device = _learning(config, stage, device), device
        self._state, self.recorder = TrainState.of(self.learning.task), _Watch(deadline)
        self._state.rate = 0.0  # samples of a trial that will diverge would end the plan
        to_device(self._state, device)

    def step(self, samples: int) -> float:
        """The seconds of the last step of a training, with so many samples."""
        training = replace(self.learning.settings.training, batch=samples, max_skipped_steps=2**31)
        self._state.samples_seen = seen = max(training.samples - samples, 0)
        start = time.perf_counter()
        batch = next(self.learning.stream.batches(0, seen, samples, 0, 1, training.micro_batch))
        iterate(self._state, batch, training, 0, LocalRuntime(self._device), self.recorder)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def _learning(config: Config, stage: str, device: torch.device) -> Learning:
    fresh = replace(config, ten_step=replace(config.ten_step, value_weights=""))
    return LEARNINGS[stage](_Understudy(fresh, device))


def _weightless(config: Config, stage: str) -> Learning:
    ratio = config.density_ratio  # with next to no vectors, for no tensor's size depends on their number
    few = replace(ratio, num_samples=min(ratio.num_samples, 2), test_samples=2)
    with torch.device("meta") as device:
        return _learning(replace(config, density_ratio=few), stage, device)


def checkpoint_bytes(config: Config, stage: str) -> int:
    """Of one checkpoint on disk, at most; nothing of that size is made."""
    state = TrainState.of(_weightless(config, stage).task)
    moments = sum(_PER_PARAMETER * len(one.parameters) for one in state.trainees.values())
    return state.num_bytes() + _PER_TENSOR * (len(state.lasting_tensors()) + moments) + _NUMBERS


def stacks(config: Config, stage: str) -> bool:
    """Whether trials that share a process are stacked, and saved as one."""
    return can_stack(_weightless(config, stage))


def recorded_names(config: Config, stage: str) -> list[str]:
    """The figures that are recorded at the end of training; the networks are made small to find out."""
    parts = {"network": Network(widths=[8, 8]), "ten_step": replace(config.ten_step, value_width=8)}
    small = replace(config, **parts, workers=replace(config.workers, precision="float32"))
    rehearsal = Rehearsal(small, stage, CPU, deadline=math.inf)
    with threads(1):
        rehearsal.step(2)
    return sorted(key for key in rehearsal.recorder.flush(2) if "/" in key)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many threads for torch, as a job sets them."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
