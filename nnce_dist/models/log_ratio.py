"""Networks for a log density ratio of vectors: (..., D) -> (...)."""

import torch
from torch import Tensor, nn


class LinearLogRatio(nn.Module):
    """w x + b, which holds the log-ratio of Gaussians that differ in their mean; starts at 0."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """f (...)."""
        return x @ self.weight + self.bias


class QuadraticLogRatio(nn.Module):
    """x Q x + w x + b, which holds the log-ratio of any two Gaussians; starts at 0."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = LinearLogRatio(dim)
        self.quadratic = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """f (...)."""
        return ((x @ self.quadratic) * x).sum(-1) + self.linear(x)


class LogRatioMLP(nn.Module):
    """`num_layers` hidden layers of SiLU units."""

    def __init__(self, dim: int, width: int, num_layers: int):
        super().__init__()
        widths = [dim, *[width] * num_layers]
        hidden = [layer for pair in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """f (...)."""
        return self.layers(x).squeeze(-1)
