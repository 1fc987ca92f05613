"""Randomness that belongs to the sample and the step: streams keyed by (seed, sample position), never by the rank."""

from functools import cached_property

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_DROPOUT = 1  # tells these keys from the streams of the samples


def splitmix64(value: int) -> int:
    """One step of the splitmix64 hash (Steele et al. 2014): well-mixed 64-bit output for consecutive inputs."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def fold(seed: int, *keys: int) -> int:
    """A 63-bit seed for the stream named by `keys`."""
    for key in keys:
        seed = splitmix64(seed ^ splitmix64(key & _MASK))
    return seed >> 1


def dropout_keys(seed: int, ids: range, update: int, device: torch.device) -> Tensor:
    """Keys (B,) int32 of samples for the masks of an iteration's update (see `models/dropout.py`)."""
    words = [fold(seed, position, _DROPOUT, update) & 0xFFFFFFFF for position in ids]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32).to(device)


def seed_default_generator(seed: int, device: torch.device) -> None:
    """Seeds what torch draws from when it is given no generator, on the CPU and on this device.

    `torch.manual_seed` does so for every kind of device, which takes as long as a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class SampleRandom:
    """One random stream per sample (see `tasks.task.Random`).

    Draws are made on the CPU, so that every device gets the same numbers, and moved to `device`. Generators are made
    for the first draw: a task may draw nothing, and hundreds of them take as long as a small network's step.
    """

    def __init__(self, seed: int, ids: range, device: torch.device | str):
        self._seed, self._ids, self._device = seed, ids, device

    @classmethod
    def at(cls, seed: int, ids: range, device: torch.device | str = "cpu") -> "SampleRandom":
        """Streams for the samples at global positions `ids` of a run with this seed."""
        return cls(seed, ids, device)

    @cached_property
    def _generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(fold(self._seed, position)) for position in self._ids]

    def _draw(self, draw, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([draw(shape, generator=generator) for generator in self._generators]).to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (B, *shape)."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), (B, *shape)."""
        return self._draw(torch.rand, shape)

    def __getitem__(self, samples: slice) -> "SampleRandom":
        part = SampleRandom(self._seed, self._ids[samples], self._device)
        part._generators = self._generators[samples]  # the same ones, not copies
        return part

    def __len__(self) -> int:
        return len(self._ids)
