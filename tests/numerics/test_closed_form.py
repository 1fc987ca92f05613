"""Closed forms against scipy, autograd, quadrature and samples.

Run: python -m pytest tests/numerics/test_closed_form.py
"""

import math

import pytest
import scipy.stats
import torch

from nnce_dist.ratio.closed_form import (
    Gaussian,
    GaussianMixture,
    correlated_pairs,
    correlation_of,
    kl_divergence,
    log_ratio,
    mutual_information,
)


def random_covariances(num, dim, generator):
    factor = torch.randn(num, dim, dim, generator=generator, dtype=torch.float64)
    return factor @ factor.mT / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


def random_mixture(num_components, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(num_components, generator=generator, dtype=torch.float64) + 0.2
    means = 2 * torch.randn(num_components, dim, generator=generator, dtype=torch.float64)
    return GaussianMixture(weights, means, random_covariances(num_components, dim, generator))


def random_points(num, dim, scale=3.0, seed=1):
    return scale * torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("num_components", "dim"), [(1, 1), (3, 2), (5, 7)])
def test_density_against_scipy(num_components, dim):
    p, x = random_mixture(num_components, dim), random_points(20, dim)
    density = sum(
        w.item() * scipy.stats.multivariate_normal(m.numpy(), c.numpy()).pdf(x.numpy())
        for w, m, c in zip(p.weights, p.means, p.covariances, strict=True)
    )
    torch.testing.assert_close(p.log_density(x).exp(), torch.as_tensor(density).reshape(20))


def test_score_is_the_gradient_of_the_log_density():
    p, x = random_mixture(4, 3), random_points(20, 3).requires_grad_()
    gradient = torch.autograd.grad(p.log_density(x).sum(), x)[0]
    torch.testing.assert_close(p.score(x), gradient)


def test_far_away_nothing_is_lost():
    p = random_mixture(4, 3)
    x = torch.full((1, 3), 1e4, dtype=torch.float64)
    assert p.log_density(x).isfinite() and p.score(x).isfinite().all()


def test_denoiser_obeys_tweedie_for_each_samples_sigma():
    p, x = random_mixture(4, 3), random_points(4, 3)
    sigmas = torch.tensor([0.01, 0.5, 3.0, 80.0], dtype=torch.float64)
    for i, sigma in enumerate(sigmas.tolist()):
        tweedie = x[i] + sigma**2 * p.smoothed(sigma).score(x[i : i + 1])[0]
        torch.testing.assert_close(p.denoise(x, sigmas)[i], tweedie)
        torch.testing.assert_close(p.denoise(x, sigma)[i], tweedie)


def test_denoiser_is_accurate_in_float32_at_large_sigma():
    p = random_mixture(4, 3)
    single = GaussianMixture(p.weights.float(), p.means.float(), p.covariances.float())
    x = random_points(50, 3, scale=80.0)
    torch.testing.assert_close(single.denoise(x.float(), 80.0).double(), p.denoise(x, 80.0), rtol=1e-4, atol=1e-4)


def test_smoothing_is_a_convolution():
    p, sigma = random_mixture(3, 1), 0.7
    step = 0.01
    grid = torch.arange(-20, 20, step, dtype=torch.float64)
    x = torch.tensor([[-2.0], [0.3], [4.0]], dtype=torch.float64)
    kernel = torch.distributions.Normal(x, sigma).log_prob(grid).exp()  # (3, grid)
    convolved = (kernel * p.log_density(grid[:, None]).exp()).sum(1) * step
    torch.testing.assert_close(p.smoothed(sigma).log_density(x).exp(), convolved)
    assert (p.log_density(grid[:, None]).exp().sum() * step).item() == pytest.approx(1)


def test_samples_have_the_moments():
    p, num = random_mixture(3, 2), 200_000
    x = p.sample(num, torch.Generator().manual_seed(2))
    mean = p.weights @ p.means
    centred = p.means - mean
    second = p.covariances + centred[:, :, None] * centred[:, None]
    covariance = (p.weights[:, None, None] * second).sum(0)
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diagonal() / num).sqrt()).all()
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.03, atol=0.03)


def test_samples_repeat_with_the_generator():
    p = random_mixture(3, 2)
    first, second = (p.sample(10, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_ratio_averages_to_one_on_its_denominator():
    q = Gaussian(torch.zeros(2, dtype=torch.float64), 4 * torch.eye(2, dtype=torch.float64))
    p = Gaussian(torch.full((2,), 0.5, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    ratio = log_ratio(p, q)(q.sample(200_000, torch.Generator().manual_seed(4))).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=5 * ratio.std().item() / 200_000**0.5)


def test_kl_divergence_is_the_mean_log_ratio():
    generator = torch.Generator().manual_seed(5)
    covariances = random_covariances(2, 3, generator)
    p, q = Gaussian(torch.zeros(3).double(), covariances[0]), Gaussian(torch.ones(3).double(), covariances[1])
    draws = log_ratio(p, q)(p.sample(200_000, generator))
    assert kl_divergence(p, q) == pytest.approx(draws.mean().item(), abs=5 * draws.std().item() / 200_000**0.5)
    assert kl_divergence(p, p) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("correlation", [-0.3, 0.0, 0.795, 0.999])
def test_mutual_information_is_the_divergence_from_independence(correlation):
    joint = correlated_pairs(5, correlation)
    independent = Gaussian(torch.zeros(10).double(), torch.eye(10).double())
    assert mutual_information(5, correlation) == pytest.approx(kl_divergence(joint, independent), abs=1e-9)


@pytest.mark.parametrize(("dim", "nats"), [(40, 10), (80, 20), (160, 40), (320, 80)])
def test_correlation_of_the_published_benchmark(dim, nats):
    rho = correlation_of(nats, dim // 2)
    assert rho == pytest.approx(0.795, abs=5e-4)
    assert mutual_information(dim // 2, rho) == pytest.approx(nats)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        (torch.ones(3), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), "needs weights"),
        (torch.ones(2), torch.zeros(2, 2), torch.eye(3).expand(2, 3, 3), "needs weights"),
        (torch.tensor([1.0, -1.0]), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), "positive weights"),
        (torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
    ],
)
def test_what_is_no_mixture_is_refused(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message) as caught:
        GaussianMixture(weights, means, covariances)
    assert "\n" not in str(caught.value)


def test_density_of_a_narrow_ring_in_float32():
    turn = torch.arange(8) * math.pi / 4
    ring = GaussianMixture(
        torch.ones(8), 0.7 * torch.stack([turn.cos(), turn.sin()], 1), 0.0025 * torch.eye(2).expand(8, 2, 2)
    )
    x = ring.sample(1000, torch.Generator().manual_seed(6))
    assert x.dtype == torch.float32
    assert x.std(0).mean().item() == pytest.approx(0.5, abs=0.02)
    peak = -math.log(8) - math.log(2 * math.pi * 0.0025)
    torch.testing.assert_close(ring.log_density(ring.means), torch.full((8,), peak))
