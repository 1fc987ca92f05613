"""python -m pytest tests/numerics/test_telescoping.py

Waymarks and their telescoping sum against Gaussians, whose waymarks are Gaussians.
"""

import pytest
import torch

from nnce_dist.models.bridges import QuadraticBridges
from nnce_dist.ratio.closed_form import Gaussian, kl_divergence, log_ratio
from nnce_dist.ratio.families import pair
from nnce_dist.ratio.telescoping import coefficients, combined, mixed, neighbours, telescoped

DIM, K, NUMBER = 4, 3, 200_000
CORRELATED = pair("correlation", DIM, 1.0)
SHIFTED = pair("shift", DIM, 2.0)


def pairs_of(p: Gaussian, q: Gaussian, number: int = NUMBER) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([side.sample(number, generator) for side in (p, q)], dim=1)


def on_the_way(p: Gaussian, q: Gaussian, power: float) -> list[Gaussian]:
    """The distributions of the combined waymarks."""
    ways = [(1 - a**2, a**2, a) for a in coefficients(K, power)]
    return [
        Gaussian(kept.sqrt() * p.mean + a * q.mean, kept * p.covariance + given * q.covariance)
        for kept, given, a in ways
    ]


def exchanged(p: Gaussian, q: Gaussian) -> list[Gaussian]:
    """The distributions of the mixed waymarks: the first k D/K coordinates are q's."""
    found = []
    for k in range(K + 1):
        there = torch.arange(DIM) < k * DIM // K
        both = torch.where(there, q.covariance, p.covariance)
        found.append(Gaussian(torch.where(there, q.mean, p.mean), both * (there == there[:, None])))
    return found


WAYS = [
    (combined, {"coefficients": coefficients(K)}, on_the_way(*CORRELATED, 1.0), CORRELATED),
    (combined, {"coefficients": coefficients(K, 2.5)}, on_the_way(*SHIFTED, 2.5), SHIFTED),
    (mixed, {"num_bridges": K}, exchanged(*CORRELATED), CORRELATED),
    (mixed, {"num_bridges": K}, exchanged(*SHIFTED), SHIFTED),
]
ways = pytest.mark.parametrize(
    ("way", "settings", "gaussians", "ends"), WAYS, ids=["even", "power", "mixed", "shifted"]
)


@ways
def test_waymarks_have_the_distributions_on_the_way(way, settings, gaussians, ends):
    waymarks = way(pairs_of(*ends), **settings)
    assert waymarks.shape == (NUMBER, K + 1, DIM)
    for k, gaussian in enumerate(gaussians):
        torch.testing.assert_close(waymarks[:, k].mean(0), gaussian.mean, atol=0.015, rtol=0)
        torch.testing.assert_close(waymarks[:, k].T.cov(), gaussian.covariance, atol=0.02, rtol=0)


@ways
def test_every_bridge_goes_from_its_data_to_its_noise(way, settings, gaussians, ends):
    data, noise = neighbours(way(pairs_of(*ends), **settings)).unbind(1)
    for k in range(K):
        p, q = gaussians[k : k + 2]
        assert log_ratio(p, q)(data[:, k]).mean().item() == pytest.approx(kl_divergence(p, q), abs=0.01)
        assert log_ratio(q, p)(noise[:, k]).mean().item() == pytest.approx(kl_divergence(q, p), abs=0.01)


def true_bridges(gaussians: list[Gaussian]) -> QuadraticBridges:
    """ln p_k/p_{k+1} of Gaussians as a network."""
    net = QuadraticBridges(DIM, K).double()
    precisions = [torch.linalg.inv(one.covariance) for one in gaussians]
    origin = torch.zeros(1, DIM, dtype=torch.float64)
    with torch.no_grad():
        for k in range(K):
            net.quadratic[k] = (precisions[k + 1] - precisions[k]) / 2
            net.linear.weight[k] = precisions[k] @ gaussians[k].mean - precisions[k + 1] @ gaussians[k + 1].mean
            net.linear.bias[k] = log_ratio(gaussians[k], gaussians[k + 1])(origin)[0]
    return net


@ways
def test_true_bridges_add_up_to_the_whole_ratio(way, settings, gaussians, ends):
    net, x = true_bridges(gaussians), pairs_of(*ends, 100).flatten(0, 1)
    for k, f in enumerate(net(x[:, None].expand(-1, K, -1)).unbind(1)):
        torch.testing.assert_close(f, log_ratio(gaussians[k], gaussians[k + 1])(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(telescoped(net, K)(x), log_ratio(*ends)(x), rtol=1e-9, atol=1e-9)


def test_coefficients_go_from_nothing_to_all():
    assert coefficients(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert coefficients(2, 7.0).tolist() == [0, 2**-7, 1]


@pytest.mark.parametrize("num_bridges", [1, 2, 4])
def test_the_first_and_last_waymarks_are_the_pair_to_the_bit(num_bridges):
    pairs = pairs_of(*SHIFTED, 100).float()
    for waymarks in (combined(pairs, coefficients(num_bridges)), mixed(pairs, num_bridges)):
        assert torch.equal(waymarks[:, [0, -1]], pairs) and waymarks.dtype == pairs.dtype


def test_mixed_waymarks_exchange_coordinates_in_order():
    pairs = torch.stack([torch.zeros(2, 5), torch.ones(2, 5)], dim=1)
    assert mixed(pairs, 3)[0].tolist() == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match="6 bridges that each exchange coordinates need as many, not 5"):
        mixed(pairs, 6)
