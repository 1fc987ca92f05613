"""EDM's denoising loss (Karras et al. 2022, table 1 and equation 2), shared by the teacher and the fake score."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Denoise = Callable[..., Tensor]


def one_hot(labels: Tensor | None, num_classes: int) -> Tensor | None:
    """Class numbers (B,) as float rows (B, num_classes); None without classes."""
    return None if labels is None or not num_classes else F.one_hot(labels, num_classes).float()


def expand(level: Tensor, x: Tensor) -> Tensor:
    """Per-sample numbers (B,) shaped to broadcast over x (B, ...)."""
    return level.reshape(-1, *[1] * (x.ndim - 1))


def per_sample(x: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) -> (B,)."""
    return x.flatten(1).sum(1)


def lognormal_sigma(normal: Tensor, p_mean: float, p_std: float) -> Tensor:
    """Noise levels (B,) with ln sigma ~ N(p_mean, p_std^2), from standard normal draws (B,)."""
    return (normal * p_std + p_mean).exp()


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2: the weighted loss of F has unit scale."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(denoised: Tensor, x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """lambda(sigma) ||D - x||^2 per sample (B,), summed over pixels."""
    return edm_weight(sigma, sigma_data) * per_sample((denoised - x).square())


def noised(x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """x + sigma noise."""
    return torch.addcmul(x, expand(sigma, x), noise)
