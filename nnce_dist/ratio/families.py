"""Pairs of distributions p, q at a dimension D and a divergence KL(p || q) of choice; q = N(0, I), everything float64.

The families differ in what ln p/q is: linear (shift), quadratic (correlation, scale), neither (mixture).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .closed_form import Gaussian, GaussianMixture, correlated_pairs, correlation_of

_GRID = torch.linspace(-12, 12, 4801, dtype=torch.float64)  # standard normal, for expectations in one dimension


def _standard(dim: int) -> Gaussian:
    return Gaussian(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))


def _direction(dim: int) -> Tensor:
    """The unit vector along the diagonal."""
    return torch.full((dim,), dim**-0.5, dtype=torch.float64)


def _solve(increasing: Callable[[float], float], target: float, high: float) -> float:
    """x in [0, high] with increasing(x) = target, by bisection to the last bit or so."""
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < target else (low, middle)
    return high


def shift(dim: int, kl: float) -> Gaussian:
    """N(mu, I) with mu along the diagonal: KL = |mu|^2 / 2."""
    return Gaussian(math.sqrt(2 * kl) * _direction(dim), torch.eye(dim, dtype=torch.float64))


def correlation(dim: int, kl: float) -> Gaussian:
    """Correlated pairs of standard normals, whose mutual information is the KL. Raises ValueError for odd `dim`."""
    if dim % 2:
        raise ValueError(f"a correlation needs an even number of dimensions, not {dim}")
    return correlated_pairs(dim // 2, correlation_of(kl, dim // 2))


def scale(dim: int, kl: float) -> Gaussian:
    """N(0, s^2 I) with s < 1, so that the ratio is bounded: KL = D (s^2 - 1 - ln s^2) / 2."""
    log_variance = -_solve(lambda t: dim * (math.exp(-t) - 1 + t) / 2, kl, 2 * kl / dim + 1)
    return Gaussian(torch.zeros(dim, dtype=torch.float64), math.exp(log_variance) * torch.eye(dim, dtype=torch.float64))


def mixture(dim: int, kl: float) -> GaussianMixture:
    """Equal parts of N(m, I) and N(-m, I), m along the diagonal; KL by quadrature in that direction."""
    m = _solve(mixture_divergence, kl, math.sqrt(2 * kl) + 2)
    means = m * torch.stack([_direction(dim), -_direction(dim)])
    return GaussianMixture(means.new_ones(2), means, torch.eye(dim, dtype=torch.float64).expand(2, dim, dim))


def mixture_divergence(m: float) -> float:
    """KL in nats between equal parts of N(m, 1), N(-m, 1) and N(0, 1): E[ln cosh(m x)] - m^2 / 2, x ~ N(m, 1)."""
    x = m * (_GRID + m)
    log_cosh = torch.logaddexp(x, -x) - math.log(2)
    density = torch.exp(-_GRID.square() / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(density * log_cosh, _GRID).item() - m**2 / 2


FAMILIES = {"shift": shift, "correlation": correlation, "scale": scale, "mixture": mixture}


def pair(family: str, dim: int, kl: float) -> tuple[GaussianMixture, Gaussian]:
    """p and q = N(0, I) on R^dim with KL(p || q) = kl nats. Raises ValueError for what the family cannot have."""
    return FAMILIES[family](dim, kl), _standard(dim)
