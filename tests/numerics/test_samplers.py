"""Run: pytest tests/numerics/test_samplers.py

Solvers have their order of convergence, stochastic steps keep the marginals, noise belongs to the sample.
"""

import math

import pytest
import torch
from beds import RING, BatchRandom, data, sliced_w1

from nnce_dist.ratio.closed_form import Gaussian
from nnce_dist.samplers.heun import Churn, euler, heun
from nnce_dist.samplers.schedules import karras_schedule, karras_sigmas, var_schedule, with_zero
from nnce_dist.samplers.ten_step import TenStepSampler, roll_out, value_guide
from nnce_dist.training.seeding import SampleRandom

SPREAD = 0.5
GAUSSIAN = Gaussian(torch.tensor([0.3, -0.2]).double(), SPREAD**2 * torch.eye(2).double())


class ExactDenoiser(torch.nn.Module):
    """E[x_0 | x] for the Gaussian, in the sampler's call."""

    def forward(self, x, sigma, labels=None):
        return GAUSSIAN.denoise(x.double(), sigma.double()).to(x)


def flow(x, start, end):
    """The probability-flow ODE's exact solution: x - mean scales as the marginal's standard deviation."""
    return GAUSSIAN.mean + (x - GAUSSIAN.mean) * math.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


def observed_order(solver, num_steps):
    """log2 of the error's fall when steps are doubled, away from the final step to 0."""
    x = 10 * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for n in (num_steps, 2 * num_steps):
        sigmas = karras_sigmas(n + 1, sigma_min=0.05, sigma_max=10)
        errors.append((solver(GAUSSIAN.denoise, x, sigmas) - flow(x, 10, 0.05)).abs().max().item())
    return math.log2(errors[0] / errors[1])


def test_heun_has_order_two_and_euler_order_one():
    assert observed_order(heun, 64) == pytest.approx(2, abs=0.1)
    assert observed_order(euler, 256) == pytest.approx(1, abs=0.1)


def test_heun_samples_the_ring():
    x = 80 * BatchRandom.seeded(5000, 1).normal(2)
    drawn = heun(RING.denoise, x, with_zero(karras_sigmas(50)))
    floor = sliced_w1(data("ring", 5000, 2), data("ring", 5000, 3))
    assert sliced_w1(drawn, data("ring", 5000, 2)) < 2.5 * floor


def test_churn_keeps_the_distribution_and_uses_its_range():
    random, sigmas = BatchRandom.seeded(5000, 0), with_zero(karras_sigmas(120))
    x = 80 * random.normal(2).double()
    drawn = heun(GAUSSIAN.denoise, x, sigmas, Churn(20, noise=1.0), random)
    assert drawn.std(0).mean().item() == pytest.approx(SPREAD, rel=0.03)
    assert not torch.equal(drawn, heun(GAUSSIAN.denoise, x, sigmas))
    outside = heun(GAUSSIAN.denoise, x, sigmas, Churn(20, sigma_min=100), random)
    torch.testing.assert_close(outside, heun(GAUSSIAN.denoise, x, sigmas), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="random"):
        heun(GAUSSIAN.denoise, x, sigmas, Churn(20))


def test_churn_factor_is_capped():
    assert Churn(40).factor(1.0, 256) == 40 / 256
    assert Churn(40).factor(1.0, 10) == math.sqrt(2) - 1
    assert Churn(40, 0.05, 50).factor(0.01, 256) == 0


def exact_standard_deviation(schedule):
    """Standard deviation after the chain, from its linear recursion on the centred Gaussian."""
    variance = torch.tensor(schedule.initial_scale**2, dtype=torch.float64)
    for t in range(len(schedule.sigma)):
        shrink = SPREAD**2 / (SPREAD**2 + schedule.sigma[t] ** 2) * schedule.input_scale[t]
        gain = schedule.state_weight[t] + schedule.denoised_weight[t] * shrink
        variance = gain**2 * variance + schedule.noise[t] ** 2
    return variance.sqrt().item()


@pytest.mark.parametrize("make", [karras_schedule, var_schedule], ids=["karras", "var"])
def test_ancestral_chain_has_the_right_variance(make):
    sampler = TenStepSampler(ExactDenoiser(), make(10))
    drawn = sampler.roll_out((2,), BatchRandom.seeded(40000, 0))[-1]
    assert drawn.std(0).mean().item() == pytest.approx(exact_standard_deviation(make(10)), rel=0.01)
    errors = [abs(exact_standard_deviation(make(n)) - SPREAD) for n in (10, 100, 1000)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.005


@pytest.mark.parametrize("make", [karras_schedule, var_schedule], ids=["karras", "var"])
def test_one_transition_has_the_next_marginal_for_a_point_mass(make):
    """Data at one point: the denoiser is constant and each ancestral step is exact, whatever its size."""
    point, schedule = torch.tensor([0.3, -0.2]), make(10)
    sampler, random = TenStepSampler(Constant(point), schedule), BatchRandom.seeded(40000, 0)
    start = (point + schedule.sigma[0].float() * random.normal(2)) / schedule.input_scale[0].float()
    states = roll_out(sampler, start, 10, random)
    for t in range(8):
        scale, sigma = 1 / schedule.input_scale[t + 1].item(), schedule.sigma[t + 1].item()
        torch.testing.assert_close(states[t + 1].std(0), torch.full((2,), scale * sigma), rtol=0.02, atol=0)
        torch.testing.assert_close(states[t + 1].mean(0), scale * point, rtol=0, atol=0.02 * scale * sigma + 1e-3)


class Constant(torch.nn.Module):
    """A denoiser that always answers the same point."""

    def __init__(self, point):
        super().__init__()
        self.register_buffer("point", point)

    def forward(self, x, sigma, labels=None):
        return self.point.expand_as(x)


def test_noise_belongs_to_the_sample():
    """The same samples, whether drawn in one batch or in two."""
    sampler = TenStepSampler(ExactDenoiser(), karras_schedule(10))
    whole = sampler.roll_out((2,), SampleRandom.at(7, range(6)))
    parts = [sampler.roll_out((2,), SampleRandom.at(7, part)) for part in (range(2), range(2, 6))]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1), rtol=1e-6, atol=1e-6)


def test_learned_noise_moves_only_the_noise():
    sampler = TenStepSampler(ExactDenoiser(), karras_schedule(10))
    torch.testing.assert_close(sampler.noise_scales()[:9], karras_schedule(10).noise[:9].float())
    x, t = torch.randn(10, 2), torch.arange(10)
    before = sampler.mean(x, t)
    with torch.no_grad():
        sampler.log_noise.add_(math.log(2))
    torch.testing.assert_close(sampler.mean(x, t), before)
    spread = sampler(x, t, torch.ones(10, 2)) - before
    torch.testing.assert_close(
        spread[:9], (2 * karras_schedule(10).noise[:9, None]).float().expand(-1, 2), rtol=1e-3, atol=1e-5
    )
    assert (spread[9] == 0).all()
    sampler.noise_scales().sum().backward()
    assert sampler.log_noise.grad[-1] == 0 and (sampler.log_noise.grad[:-1] > 0).all()


def test_last_noise_of_the_var_recipe_stays_fixed():
    sampler = TenStepSampler(ExactDenoiser(), var_schedule(10))
    with torch.no_grad():
        sampler.log_noise.add_(1)
    assert sampler.noise_scales()[-1].item() == pytest.approx(1e-3)


def test_value_guidance_goes_down_the_cost():
    sampler = TenStepSampler(ExactDenoiser(), karras_schedule(10))

    def value(x):
        return (x - 1).square().sum(1)

    plain = sampler.roll_out((2,), BatchRandom.seeded(500, 0))[-1]
    guided, misguided = (
        sampler.roll_out((2,), BatchRandom.seeded(500, 0), guide=value_guide(value, sampler.noise_scales(), w))[-1]
        for w in (0.1, -0.1)
    )
    assert value(guided).mean() < 0.8 * value(plain).mean() < 0.8 * value(misguided).mean()
