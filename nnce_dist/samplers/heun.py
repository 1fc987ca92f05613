"""EDM's samplers: Heun's second-order method with churn, and Euler's (Karras et al. 2022, algorithm 2).

The state keeps the type of `x`: give float64 for EDM's published settings. Nothing here needs gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


class Normal(Protocol):
    """Where noise comes from: one stream per sample."""

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (B, *shape)."""


@dataclass(frozen=True)
class Churn:
    """Noise added before each step: S_churn, its range of levels, and S_noise."""

    amount: float
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def factor(self, sigma: float, num_steps: int) -> float:
        """gamma_i: by how much the noise level rises before the step."""
        inside = self.sigma_min <= sigma <= self.sigma_max
        return min(self.amount / num_steps, math.sqrt(2) - 1) if inside else 0.0


@torch.no_grad()
def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, churn: Churn | None = None, random: Normal | None = None
) -> Tensor:
    """From x (B, ...) at level sigmas[0] to level sigmas[-1], with two evaluations a step, one where a step ends at 0.

    `denoise(x, sigma (B,))` has its labels bound; `churn` needs `random`.
    """
    if churn is not None and random is None:
        raise ValueError("churn adds noise: give `random`")
    levels = sigmas.tolist()
    for sigma, sigma_next in zip(levels[:-1], levels[1:], strict=True):
        if churn is not None:
            x, sigma = _churned(x, sigma, churn, len(levels) - 1, random)
        slope = _slope(denoise, x, sigma)
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            x_next = x + (sigma_next - sigma) * (slope + _slope(denoise, x_next, sigma_next)) / 2
        x = x_next
    return x


@torch.no_grad()
def euler(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """As `heun` without the second evaluation and without churn."""
    levels = sigmas.tolist()
    for sigma, sigma_next in zip(levels[:-1], levels[1:], strict=True):
        x = x + (sigma_next - sigma) * _slope(denoise, x, sigma)
    return x


def _slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """dx/dsigma = (x - D(x; sigma)) / sigma (EDM, equation 3)."""
    return (x - denoise(x, x.new_full((len(x),), sigma))) / sigma


def _churned(x: Tensor, sigma: float, churn: Churn, num_steps: int, random: Normal) -> tuple[Tensor, float]:
    raised = sigma * (1 + churn.factor(sigma, num_steps))
    noise = random.normal(*x.shape[1:]).to(x)
    return x + churn.noise * math.sqrt(raised**2 - sigma**2) * noise, raised
