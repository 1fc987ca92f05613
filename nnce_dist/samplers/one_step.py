"""One network evaluation per sample: G(z) = D(sigma_init z; sigma_init) (Zhou et al. 2024, SiD)."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class _Normal(Protocol):
    def normal(self, *shape: int) -> Tensor: ...


def one_step(denoise: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], sigma_init: float, random: _Normal):
    """Samples (B, *shape) from one call of `denoise(x, sigma (B,))`; the batch size is that of `random`."""
    z = random.normal(*shape)
    return denoise(sigma_init * z, torch.full((len(z),), sigma_init, device=z.device))
