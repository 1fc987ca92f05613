"""Randomness that belongs to the sample and the step: streams keyed by (seed, sample position), never by the rank."""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


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


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class SampleRandom:
    """One random stream per sample (see `tasks.task.Random`).

    Draws are made on the CPU, so that every device gets the same numbers, and moved to `device`.
    """

    def __init__(self, generators: list[torch.Generator], device: torch.device | str = "cpu"):
        self._generators = generators
        self._device = device

    @classmethod
    def at(cls, seed: int, ids: range, device: torch.device | str = "cpu") -> "SampleRandom":
        """Streams for the samples at global positions `ids` of a run with this seed."""
        return cls([_generator(fold(seed, position)) for position in ids], device)

    def _draw(self, draw, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([draw(shape, generator=generator) for generator in self._generators]).to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (B, *shape)."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), (B, *shape)."""
        return self._draw(torch.rand, shape)

    def __getitem__(self, samples: slice) -> "SampleRandom":
        return SampleRandom(self._generators[samples], self._device)

    def __len__(self) -> int:
        return len(self._generators)
