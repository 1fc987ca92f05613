"""python -m pytest tests/numerics/test_ratio_families.py

Distributions at a KL of choice, what the networks can hold of their log-ratio, and the figures of an estimate.
"""

import math

import pytest
import torch

from nnce_dist.evaluation.ratio_error import measure
from nnce_dist.models.log_ratio import LinearLogRatio, QuadraticLogRatio
from nnce_dist.ratio.closed_form import GaussianMixture, kl_divergence, log_ratio
from nnce_dist.ratio.families import FAMILIES, mixture_divergence, pair

GAUSSIAN = ("shift", "correlation", "scale")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", GAUSSIAN)
@pytest.mark.parametrize(("dim", "kl"), [(2, 0.5), (20, 8.0), (40, 10.0)])
def test_gaussian_families_have_the_divergence_asked_for(family, dim, kl):
    p, q = pair(family, dim, kl)
    assert kl_divergence(p, q) == pytest.approx(kl, rel=1e-9)
    assert p.dim == q.dim == dim


@pytest.mark.parametrize(("dim", "kl"), [(1, 0.05), (1, 0.5), (5, 8.0)])
def test_the_mixture_has_the_divergence_asked_for(dim, kl):
    p, q = pair("mixture", dim, kl)
    f = log_ratio(p, q)(p.sample(200_000, generator()))
    assert f.mean().item() == pytest.approx(kl, abs=4 * f.std().item() / math.sqrt(len(f)))


def test_the_mixtures_divergence_by_quadrature_against_its_limits():
    assert mixture_divergence(8.0) == pytest.approx(8.0**2 / 2 - math.log(2), abs=1e-9)  # modes far apart
    assert mixture_divergence(0.1) == pytest.approx(0.1**4 / 4, rel=0.03)  # the first term of its series


def test_an_odd_number_of_dimensions_has_no_pairs():
    with pytest.raises(ValueError, match="even number of dimensions, not 3"):
        FAMILIES["correlation"](3, 1.0)


def test_samples_of_a_mixture_have_its_moments_in_every_component():
    means = torch.tensor([[5.0, 0.0], [-5.0, 0.0]], dtype=torch.float64)
    covariances = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[0.5, -0.3], [-0.3, 2.0]]], dtype=torch.float64)
    x = GaussianMixture(torch.tensor([0.25, 0.75], dtype=torch.float64), means, covariances).sample(
        100_000, generator()
    )
    left = x[:, 0] < 0
    assert left.double().mean().item() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(x[left].T.cov(), covariances[1], atol=0.03, rtol=0)
    torch.testing.assert_close(x[~left].T.cov(), covariances[0], atol=0.03, rtol=0)


@pytest.mark.parametrize(("family", "network"), [("shift", "linear"), *((f, "quadratic") for f in GAUSSIAN)])
def test_the_networks_hold_the_log_ratios_they_are_made_for(family, network):
    p, q = pair(family, 4, 3.0)
    x = p.sample(500, generator())
    net = {"linear": LinearLogRatio, "quadratic": QuadraticLogRatio}[network](4).double()
    columns = [
        x.new_ones(500, 1),
        x,
        *([torch.einsum("bi,bj->bij", x, x).flatten(1)] if network == "quadratic" else []),
    ]
    solution = torch.linalg.lstsq(torch.cat(columns, 1), log_ratio(p, q)(x), driver="gelsd").solution
    linear = net if network == "linear" else net.linear
    with torch.no_grad():
        linear.bias.copy_(solution[0])
        linear.weight.copy_(solution[1:5])
        if network == "quadratic":
            net.quadratic.copy_(solution[5:].view(4, 4))
    fresh = q.sample(100, generator(1))
    torch.testing.assert_close(net(fresh), log_ratio(p, q)(fresh), rtol=1e-9, atol=1e-9)


def test_the_truth_has_no_error_and_a_shifted_one_has_its_shift():
    p, q = pair("correlation", 6, 2.0)
    truth, data, noise = log_ratio(p, q), p.sample(10_000, generator()).float(), q.sample(10_000, generator(1)).float()
    exact = measure(lambda x: truth(x.double()), data, noise, truth, 2.0)
    assert exact["log_ratio_error_data@10k"] == exact["log_ratio_error_noise@10k"] == 0
    assert exact["kl_error@10k"] < 0.05 and exact["calibration_error@10k"] < 0.1
    assert exact["kl_lower_bound@10k"] == pytest.approx(2.0, abs=0.1)
    off = measure(lambda x: truth(x.double()) + 0.5, data, noise, truth, 2.0)
    assert off["log_ratio_error_data@10k"] == pytest.approx(0.5)
    assert off["kl_estimate@10k"] - exact["kl_estimate@10k"] == pytest.approx(0.5)
    assert off["kl_lower_bound@10k"] == pytest.approx(exact["kl_lower_bound@10k"])  # it does not see a constant
    assert off["cross_entropy@10k"] > exact["cross_entropy@10k"]  # this does
    assert not any("error_data" in name or "kl_error" in name for name in measure(truth, data.double(), noise.double()))
