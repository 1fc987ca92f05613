"""Two-dimensional test beds: known densities, a teacher trained in seconds, and distances between samples.

Both densities have a standard deviation of 0.5 per coordinate, which is EDM's sigma_data.
"""

import copy
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nnce_dist.models.mlp import HarmonicMLP
from nnce_dist.models.preconditioning import EDMPrecond
from nnce_dist.ratio.closed_form import GaussianMixture
from nnce_dist.tasks.edm_loss import denoising_loss, lognormal_sigma, noised

HALF_WIDTH = 0.87


@dataclass(frozen=True)
class BatchRandom:
    """`tasks.task.Random` with one stream for the whole batch: cheap, but a slice draws from the same stream."""

    size: int
    generator: torch.Generator

    @classmethod
    def seeded(cls, size: int, seed: int) -> "BatchRandom":
        return cls(size, torch.Generator().manual_seed(seed))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.size, *shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.size, *shape, generator=self.generator)

    def __getitem__(self, samples: slice) -> "BatchRandom":
        return BatchRandom(len(range(*samples.indices(self.size))), self.generator)

    def __len__(self) -> int:
        return self.size


def _ring() -> GaussianMixture:
    angle = torch.arange(8) * (2 * math.pi / 8)
    centres = 0.7 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(torch.ones(8), centres, 0.05**2 * torch.eye(2).repeat(8, 1, 1))


RING = _ring()  # 8 narrow Gaussians on a circle


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Samples (n, 2) uniform on the 8 dark cells of a 4 x 4 board over [-0.87, 0.87]^2."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], dim=1).float()
    return (corner + torch.rand(n, 2, generator=generator)) * (HALF_WIDTH / 2) - HALF_WIDTH


BEDS = {"ring": RING.sample, "checkerboard": checkerboard}


def data(bed: str, n: int, seed: int) -> Tensor:
    """Samples (n, 2) of a bed."""
    return BEDS[bed](n, torch.Generator().manual_seed(seed))


@functools.lru_cache
def teacher(bed: str, iterations: int = 8000, batch: int = 1024, lr: float = 2e-3) -> EDMPrecond:
    """An EDM denoiser trained on a bed: Adam, cosine rate, weight average .998. Cached: copy before training it on.

    About 15 s at 8,000 iterations; 250 give a weak teacher.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = EDMPrecond(HarmonicMLP())
    average = copy.deepcopy(denoiser).requires_grad_(False)
    weights, averages = list(denoiser.parameters()), list(average.parameters())
    optimiser = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    generator = torch.Generator().manual_seed(1)
    for step in range(iterations):
        x = BEDS[bed](batch, generator)
        sigma = lognormal_sigma(torch.randn(batch, generator=generator), -1.2, 1.2)
        noisy = noised(x, sigma, torch.randn(batch, 2, generator=generator))
        optimiser.zero_grad()
        denoising_loss(denoiser(noisy, sigma), x, sigma, 0.5).mean().backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(0.998, step / (step + 10)))
    return average.eval()


def sliced_w1(x: Tensor, y: Tensor, directions: int = 100) -> float:
    """Sliced Wasserstein-1 distance of equally many samples (n, 2): mean over fixed directions of the half circle."""
    angle = (torch.arange(directions) + 0.5) * (math.pi / directions)
    axes = torch.stack([angle.cos(), angle.sin()])
    return ((x @ axes).sort(0).values - (y @ axes).sort(0).values).abs().mean().item()


def mmd2(x: Tensor, y: Tensor, frequencies: int = 256) -> float:
    """Unbiased squared MMD of samples (n, 2), (m, 2): Gauss kernels, 4 bandwidths .05 to 1, fixed random features."""
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for bandwidth in torch.logspace(math.log10(0.05), 0, 4):
        axes = torch.randn(2, frequencies, generator=generator) / bandwidth
        a, b = _features(x, axes), _features(y, axes)
        mean_a, mean_b, n, m = a.mean(0, dtype=torch.float64), b.mean(0, dtype=torch.float64), len(a), len(b)
        within = (n * mean_a.square().sum() - 1) / (n - 1) + (m * mean_b.square().sum() - 1) / (m - 1)
        total += (within - 2 * mean_a @ mean_b).item()
    return total / 4


def _features(x: Tensor, axes: Tensor) -> Tensor:
    """Rows of unit norm whose inner products estimate the Gaussian kernel."""
    phase = x @ axes
    return torch.cat([phase.cos(), phase.sin()], dim=1) / math.sqrt(axes.shape[1])
