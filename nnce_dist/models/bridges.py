"""Networks for the K log-ratios of a telescoping sum (`ratio/telescoping.py`): f_k at a vector of its own each.

They map (B, K, D) to (B, K). The networks of `log_ratio.py` do so for K = 1.
"""

import torch
from torch import Tensor, nn


class LinearBridges(nn.Module):
    """w_k x + b_k; starts at 0."""

    def __init__(self, dim: int, num_bridges: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_bridges, dim))
        self.bias = nn.Parameter(torch.zeros(num_bridges))

    def forward(self, x: Tensor) -> Tensor:
        """f_k (B, K)."""
        return (x * self.weight).sum(-1) + self.bias


class QuadraticBridges(nn.Module):
    """x Q_k x + w_k x + b_k; starts at 0."""

    def __init__(self, dim: int, num_bridges: int):
        super().__init__()
        self.linear = LinearBridges(dim, num_bridges)
        self.quadratic = nn.Parameter(torch.zeros(num_bridges, dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """f_k (B, K)."""
        return (torch.einsum("bkd,kde->bke", x, self.quadratic) * x).sum(-1) + self.linear(x)


class ScaleShift(nn.Module):
    """Each bridge's own scale and shift of units that all bridges share: (B, K, width) as it is; starts as identity."""

    def __init__(self, width: int, num_bridges: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_bridges, width))
        self.shift = nn.Parameter(torch.zeros(num_bridges, width))

    def forward(self, x: Tensor) -> Tensor:
        """The units of the same shape."""
        return x * self.scale + self.shift


class BridgesMLP(nn.Module):
    """A body of `num_layers` hidden layers of SiLU units, scaled and shifted per bridge, and a linear head for each.

    The form of Rhodes et al. 2020 (method section 6); starts at 0.
    """

    def __init__(self, dim: int, width: int, num_layers: int, num_bridges: int):
        super().__init__()
        widths = [dim, *[width] * num_layers]
        hidden = [
            layer
            for sizes in zip(widths, widths[1:], strict=False)
            for layer in (nn.Linear(*sizes), ScaleShift(width, num_bridges), nn.SiLU())
        ]
        self.layers = nn.Sequential(*hidden, LinearBridges(width, num_bridges))

    def forward(self, x: Tensor) -> Tensor:
        """f_k (B, K)."""
        return self.layers(x)
