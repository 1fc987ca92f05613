"""Distributions with exact density, score, denoiser and ratios: the ground truth that estimates are held against.

Covariances are held by their eigenvectors Q and eigenvalues e: smoothing by Gaussian noise of any sigma then only adds
sigma^2 to e.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class GaussianMixture:
    """sum_k w_k N(mu_k, Sigma_k) on R^D.

    Args:
        weights: (K,) positive, normalised here.
        means: (K, D).
        covariances: (K, D, D) symmetric positive definite.

    Raises:
        ValueError: shapes that do not fit, weights that are not positive, a covariance that is not positive definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        num_components, dim = means.shape
        if weights.shape != (num_components,) or covariances.shape != (num_components, dim, dim):
            raise ValueError(
                f"a mixture with means {tuple(means.shape)} needs weights ({num_components},) and covariances "
                f"({num_components}, {dim}, {dim}), not {tuple(weights.shape)} and {tuple(covariances.shape)}"
            )
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances.double())
        if not (weights > 0).all() or not (eigenvalues > 0).all():
            raise ValueError("a mixture needs positive weights and positive definite covariances")
        self.weights = weights / weights.sum()
        self.means = means
        self.covariances = covariances
        self._eigenvalues = eigenvalues.to(means)  # (K, D)
        self._eigenvectors = eigenvectors.to(means)  # (K, D, D), one per column

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def log_density(self, x: Tensor) -> Tensor:
        """ln p(x) in nats: (B, D) -> (B,)."""
        return self._log_joint(self._project(x), self._eigenvalues).logsumexp(1)

    def score(self, x: Tensor) -> Tensor:
        """grad_x ln p(x): (B, D) -> (B, D)."""
        y = self._project(x)
        posterior = self._log_joint(y, self._eigenvalues).softmax(1)
        return -torch.einsum("bk,kde,bke->bd", posterior, self._eigenvectors, y / self._eigenvalues)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x] for x = x0 + sigma n, n ~ N(0, I): the ideal denoiser; x (B, D), sigma a number or (B,).

        Written as an average of component posteriors, not as x + sigma^2 score, which cancels at large sigma.
        """
        variance = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square().expand(len(x))
        spread = self._eigenvalues + variance[:, None, None]  # (B, K, D)
        y = self._project(x)
        posterior = self._log_joint(y, spread).softmax(1)
        shrunk = torch.einsum("kde,bke->bkd", self._eigenvectors, y * self._eigenvalues / spread)
        return torch.einsum("bk,bkd->bd", posterior, self.means + shrunk)

    def smoothed(self, sigma: float) -> "GaussianMixture":
        """The distribution of x0 + sigma n."""
        noise = sigma**2 * torch.eye(self.dim).to(self.means)
        return GaussianMixture(self.weights, self.means, self.covariances + noise)

    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent draws (num_samples, D)."""
        component = torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)
        normal = torch.randn(num_samples, self.dim, generator=generator, dtype=self.means.dtype)
        samples = normal * self._eigenvalues[component].sqrt()
        for k in component.unique():  # a matrix for every sample would take D times the memory
            samples[component == k] @= self._eigenvectors[k].T
        return samples + self.means[component]

    def _project(self, x: Tensor) -> Tensor:
        """x in every component's eigenbasis, from its mean: (B, D) -> (B, K, D)."""
        return torch.einsum("kde,bkd->bke", self._eigenvectors, x[:, None] - self.means)

    def _log_joint(self, y: Tensor, variances: Tensor) -> Tensor:
        """ln w_k + ln N(x; mu_k, Sigma_k) from projections y (B, K, D) and eigenvalues (K, D) or (B, K, D): (B, K)."""
        log_normal = -0.5 * (y.square() / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
        return self.weights.log() + log_normal


class Gaussian(GaussianMixture):
    """N(mean, covariance) on R^D: mean (D,), covariance (D, D)."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        super().__init__(mean.new_ones(1), mean[None], covariance[None])

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.means[0]

    @property
    def covariance(self) -> Tensor:
        """(D, D)."""
        return self.covariances[0]


def log_ratio(p: GaussianMixture, q: GaussianMixture) -> Callable[[Tensor], Tensor]:
    """The exact f = ln p/q in nats, as a function (B, D) -> (B,)."""
    return lambda x: p.log_density(x) - q.log_density(x)


def kl_divergence(p: Gaussian, q: Gaussian) -> float:
    """KL(p || q) in nats."""
    solved = torch.linalg.solve(q.covariance.double(), p.covariance.double())
    shift = (q.mean - p.mean).double()
    distance = shift @ torch.linalg.solve(q.covariance.double(), shift)
    return 0.5 * (solved.trace() + distance - p.dim - torch.logdet(solved)).item()


def correlated_pairs(num_pairs: int, correlation: float) -> Gaussian:
    """Independent pairs of standard normals with this correlation; D = 2 num_pairs, partners next to each other.

    Its ratio to N(0, I) is the benchmark of mutual information (Rhodes et al. 2020, method section 6). float64.
    """
    pair = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    return Gaussian(torch.zeros(2 * num_pairs, dtype=torch.float64), torch.block_diag(*[pair] * num_pairs))


def mutual_information(num_pairs: int, correlation: float) -> float:
    """Mutual information of the partners of `correlated_pairs` in nats: -n/2 ln(1 - rho^2)."""
    return -0.5 * num_pairs * math.log1p(-(correlation**2))


def correlation_of(mutual_information: float, num_pairs: int) -> float:
    """The correlation rho >= 0 at which `num_pairs` pairs share so many nats."""
    return math.sqrt(-math.expm1(-2 * mutual_information / num_pairs))
