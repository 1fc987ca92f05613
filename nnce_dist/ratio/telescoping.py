"""Telescoping: ln p/q as a sum of log-ratios of neighbours on a way from p to q (Rhodes et al. 2020, method section 6).

A pair of independent x ~ p and z ~ q has K + 1 waymarks x_0 = x, ..., x_K = z. With p_k the distribution of x_k

    ln p/q = sum_k ln p_k/p_{k+1},   k = 0 .. K - 1,

and each term, a bridge, is between distributions that a classifier tells apart less easily than p and q.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def coefficients(num_bridges: int, power: float = 1.0, device: torch.device | None = None) -> Tensor:
    """a_k = (k/K)^power, k = 0 .. K (method section 6): (K+1,), float64."""
    return torch.linspace(0, 1, num_bridges + 1, dtype=torch.float64, device=device) ** power


def combined(pairs: Tensor, coefficients: Tensor) -> Tensor:
    """x_k = sqrt(1 - a_k^2) x + a_k z, exactly x and z at the ends: pairs (B, 2, D), a (K+1,) -> (B, K+1, D)."""
    x, z = pairs.unbind(1)
    kept, given = (a.to(x)[:, None] for a in ((1 - coefficients.square()).sqrt(), coefficients))
    return kept * x[:, None] + given * z[:, None]


def mixed(pairs: Tensor, num_bridges: int) -> Tensor:
    """x_k has its first k D/K coordinates, rounded down, from z, the others from x: (B, 2, D) -> (B, K+1, D).

    Nothing is averaged: for structured data, whose parts mean something by themselves (method section 6). Raises
    ValueError for more bridges than coordinates: some would lead nowhere.
    """
    (x, z), dim = pairs.unbind(1), pairs.shape[2]
    if num_bridges > dim:
        raise ValueError(f"{num_bridges} bridges that each exchange coordinates need as many, not {dim}")
    exchanged = torch.arange(num_bridges + 1, device=x.device)[:, None] * dim // num_bridges
    return torch.where(torch.arange(dim, device=x.device) < exchanged, z[:, None], x[:, None])


def neighbours(waymarks: Tensor) -> Tensor:
    """The two ends of every bridge, x_k as its data and x_{k+1} as its noise: (B, K+1, D) -> (B, 2, K, D)."""
    return torch.stack([waymarks[:, :-1], waymarks[:, 1:]], dim=1)


def telescoped(bridges: Callable[[Tensor], Tensor], num_bridges: int) -> Callable[[Tensor], Tensor]:
    """f = sum_k f_k, (B, D) -> (B,), from bridges that map (B, K, D), a vector for each, to (B, K)."""
    return lambda x: bridges(x[:, None].expand(-1, num_bridges, -1)).sum(1)
