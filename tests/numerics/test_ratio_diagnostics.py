"""Diagnostics of a learned ratio against what closed-form Gaussians say.

Run: python -m pytest tests/numerics/test_ratio_diagnostics.py
"""

import math

import pytest
import torch

from nnce_dist.ratio.closed_form import Gaussian, kl_divergence, log_ratio
from nnce_dist.ratio.diagnostics import effective_sample_size, gradient_angle, ratio_observations


def test_observations_of_the_true_ratio_average_to_the_closed_forms():
    shift, num = 0.8, 200_000
    p, q = Gaussian(torch.tensor([shift]), torch.eye(1)), Gaussian(torch.zeros(1), torch.eye(1))
    generator = torch.Generator().manual_seed(0)
    f = log_ratio(p, q)
    seen = ratio_observations(f(p.sample(num, generator)), f(q.sample(num, generator)), 3.0)
    mean = {name: values.mean().item() for name, values in seen.items()}
    assert all(values.shape == (num,) for values in seen.values())
    assert mean["log_ratio_data"] == pytest.approx(kl_divergence(p, q), abs=0.01)
    assert mean["log_ratio_noise"] == pytest.approx(-kl_divergence(q, p), abs=0.01)
    assert mean["ratio_noise"] == pytest.approx(1, abs=0.01)
    assert mean["ratio_noise_squared"] == pytest.approx(math.exp(shift**2), rel=0.03)
    # f = shift x - shift^2 / 2 passes ln 3 at x = (ln 3 + shift^2 / 2) / shift
    turn, normal = (math.log(3) + shift**2 / 2) / shift, torch.distributions.Normal(0.0, 1.0)
    assert mean["saturated_noise"] == pytest.approx(1 - normal.cdf(torch.tensor(turn)).item(), abs=0.005)
    assert mean["saturated_data"] == pytest.approx(1 - normal.cdf(torch.tensor(turn - shift)).item(), abs=0.005)


def test_observations_stay_finite_and_outside_the_graph():
    f = torch.tensor([-1e30, 0.0, 1e30], requires_grad=True)
    for magnitude in (1.0, math.inf, torch.tensor(10.0)):
        seen = ratio_observations(f.bfloat16(), f, magnitude)
        assert seen.pop("noise_magnitude").tolist() == [float(magnitude)] * 3
        assert all(v.isfinite().all() and not v.requires_grad and v.dtype == torch.float32 for v in seen.values())
    assert ratio_observations(f, f, math.inf)["saturated_noise"].sum() == 0


def test_effective_sample_size():
    def of(ratios):
        r = torch.tensor(ratios, dtype=torch.float64)
        return effective_sample_size(r.mean().item(), r.square().mean().item(), len(r))

    assert of([2.0] * 7) == pytest.approx(7)
    assert of([1e6, 0.0, 0.0, 0.0]) == pytest.approx(1)
    assert of([1.0, 3.0]) == pytest.approx(16 / 10)
    assert of([0.0, 0.0]) == 0


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, math.pi / 2, 3.0, math.pi])
def test_angle_between_gradients(angle):
    zero = torch.zeros((), dtype=torch.float64)
    u = [torch.tensor([[5.0, 0.0]], dtype=torch.float64), zero]
    v = [torch.tensor([[0.1 * math.cos(angle), 0.1 * math.sin(angle)]], dtype=torch.float64), zero]
    assert gradient_angle(u, v) == pytest.approx(angle, rel=1e-9, abs=1e-15)


def test_angle_to_a_zero_gradient_is_undefined():
    assert math.isnan(gradient_angle([torch.zeros(2)], [torch.ones(2)]))
