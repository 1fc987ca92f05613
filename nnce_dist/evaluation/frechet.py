"""Distances between two sets of images from their features: Frechet, kernel (KID), precision and recall. In float64.

Features are (N, d) rows. Frechet statistics stream: `Moments` keeps plain sums, so that batches, processes and machines
combine by adding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**24  # entries of a distance matrix held at a time (128 MiB)


@dataclass
class Moments:
    """Sums from which mean and covariance follow. Every field adds up over batches and processes."""

    count: Tensor  # ()
    total: Tensor  # (d,) sum of x
    outer: Tensor  # (d, d) sum of x x^T

    @classmethod
    def empty(cls, dim: int, device: torch.device | str = "cpu") -> "Moments":
        """Moments of no feature of length `dim`."""
        zeros = torch.zeros(1 + dim, dim, dtype=torch.float64, device=device)
        return cls(torch.zeros((), dtype=torch.float64, device=device), zeros[0].clone(), zeros[1:].clone())

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Moments of the rows of `features` (N, d)."""
        moments = cls.empty(features.shape[1], features.device)
        moments.add(features)
        return moments

    def add(self, features: Tensor) -> None:
        """Takes in a batch of features (B, d)."""
        features = features.to(torch.float64)
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def merge(self, other: "Moments") -> None:
        """Takes in the moments of other samples."""
        self.count += other.count
        self.total += other.total
        self.outer += other.outer

    def state(self) -> dict[str, Tensor]:
        """The sums by name: a sum over processes of each gives the moments of all their samples."""
        return {"count": self.count, "total": self.total, "outer": self.outer}

    def mean(self) -> Tensor:
        """Sample mean (d,)."""
        return self.total / self.count

    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d), divided by n - 1. Raises ValueError below two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {int(self.count)}")
        mean = self.mean()
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)


def _sqrt_psd(matrix: Tensor) -> Tensor:
    """Symmetric square root; rounding that makes eigenvalues negative is clipped away."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}) (Heusel et al. 2017, eq. 6; Dowson and Landau 1982).

    tr (S_a S_b)^{1/2} is the sum of singular values of S_a^{1/2} S_b^{1/2}: real and stable for singular covariances.
    """
    covariance_a, covariance_b = a.covariance(), b.covariance()
    cross = torch.linalg.svdvals(_sqrt_psd(covariance_a) @ _sqrt_psd(covariance_b)).sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * cross
    return float((a.mean() - b.mean()).square().sum() + spread)


def _polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 3)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def unbiased_mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (Gretton et al. 2012, eq. 3); may be negative."""
    n, m = len(x), len(y)
    within_x, within_y = _polynomial_kernel(x, x), _polynomial_kernel(y, y)
    same_x = (within_x.sum() - within_x.trace()) / (n * (n - 1))
    same_y = (within_y.sum() - within_y.trace()) / (m * (m - 1))
    return same_x + same_y - 2 * _polynomial_kernel(x, y).mean()


def kernel_distance(a: Tensor, b: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> float:
    """KID: the mean of `unbiased_mmd2` over random subsets of both sides (Binkowski et al. 2018).

    The subsets depend on `seed` and the numbers of samples alone; a side below `subset_size` shrinks them.
    """
    size = min(subset_size, len(a), len(b))
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 samples a side, got {len(a)} and {len(b)}")
    a, b = a.to(torch.float64), b.to(torch.float64)
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        chosen = torch.randperm(len(features), generator=generator)[:size]
        return features[chosen.to(features.device)]

    return float(torch.stack([unbiased_mmd2(subset(a), subset(b)) for _ in range(num_subsets)]).mean())


def _distance_blocks(queries: Tensor, points: Tensor) -> Iterator[Tensor]:
    """Squared distances (block, len(points)) from each block of queries to all points."""
    norms = points.square().sum(1)
    for block in queries.split(max(1, BLOCK // len(points))):
        yield (block.square().sum(1, keepdim=True) + norms - 2 * block @ points.T).clamp_min_(0)


def manifold_radii(points: Tensor, neighbours: int = 3) -> Tensor:
    """Squared distance (N,) from each point to its k-th nearest other point (Kynkaanniemi et al. 2019, section 2)."""
    if len(points) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} samples, got {len(points)}")
    points = points.to(torch.float64)
    # The nearest point is the point itself, so the k-th other one is the (k+1)-th smallest.
    return torch.cat(
        [d.topk(neighbours + 1, dim=1, largest=False).values[:, -1] for d in _distance_blocks(points, points)]
    )


def covered(queries: Tensor, points: Tensor, radii: Tensor) -> float:
    """Fraction of `queries` that lie in the ball of at least one point; `radii` (N,) are squared."""
    blocks = _distance_blocks(queries.to(torch.float64), points.to(torch.float64))
    return float(torch.cat([(d <= radii).any(1) for d in blocks]).double().mean())


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int = 3, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2).

    Precision: the fraction of generated samples inside the real manifold; recall: of real samples inside the generated
    one. `real_radii` = `manifold_radii(real)` saves its computation when many sets meet one reference.
    """
    real_radii = manifold_radii(real, neighbours) if real_radii is None else real_radii
    return covered(generated, real, real_radii), covered(real, generated, manifold_radii(generated, neighbours))
