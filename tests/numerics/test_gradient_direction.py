"""N2CE's population gradient turns to that of maximum likelihood as M grows, on Gaussians by quadrature.

Run: python -m pytest tests/numerics/test_gradient_direction.py
"""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from nnce_dist.ratio.diagnostics import gradient_angle
from nnce_dist.ratio.objectives import n2ce, reweighted_bce

MAGNITUDES = [10.0**k for k in range(7)]
float64 = {"dtype": torch.float64}


def line(low, high, num_points):
    """Midpoints (n, 1) and the length of a cell."""
    step = (high - low) / num_points
    return (low + step * (torch.arange(num_points, **float64) + 0.5))[:, None], step


class Population:
    """Expected losses of a normalised model of the data: f = ln p_theta - ln q0, averaged by quadrature."""

    def __init__(self, data, noise, points, cell):
        self.data, self.points = data, points
        self.mass_data = data.log_prob(points).exp() * cell
        self.mass_noise = noise.log_prob(points).exp() * cell
        self.log_noise = noise.log_prob(points)

    def gradient(self, model, theta, magnitude, objective=n2ce):
        f = model(theta).log_prob(self.points) - self.log_noise
        data, noise = objective(f, f, magnitude)
        return torch.autograd.grad((self.mass_data * data + self.mass_noise * noise).sum(), theta)


def one_dimensional(mean, scale):
    """Data N(mean, scale^2), noise N(0, 1), parameters (a, ln s) of the model N(a, s^2)."""
    x, cell = line(-14, 18, 6400)
    unit = Normal(torch.zeros((), **float64), torch.ones((), **float64))
    return Population(Normal(unit.loc + mean, unit.scale * scale), unit, x[:, 0], cell)


def normal_model(theta):
    mean, log_scale = theta
    return Normal(mean, log_scale.exp())


def normal_mle_gradient(population, theta):
    """The gradient of -E_data[ln p_theta] in (a, ln s)."""
    (a, log_s), (mean, scale) = theta, (population.data.loc, population.data.scale)
    return (a - mean) / log_s.exp() ** 2, 1 - (scale**2 + (a - mean) ** 2) / log_s.exp() ** 2


def parameters(*values):
    return [torch.tensor(value, **float64, requires_grad=True) for value in values]


def angles(population, model, theta, exact, magnitudes):
    return [gradient_angle(population.gradient(model, theta, m), exact) for m in magnitudes]


@pytest.mark.parametrize(
    ("data", "start"),
    [((3.0, 0.7), (1.0, 0.2)), ((2.0, 0.5), (0.5, -0.3)), ((-2.0, 0.9), (0.5, 0.1)), ((1.0, 0.6), (0.3, 0.0))],
)
def test_angle_falls_to_zero_in_one_dimension(data, start):
    population, theta = one_dimensional(*data), parameters(*start)
    exact = normal_mle_gradient(population, theta)
    found = angles(population, normal_model, theta, exact, MAGNITUDES)
    assert all(later < earlier for earlier, later in zip(found, found[1:], strict=False))
    assert found[0] > 0.02 and found[-1] < 1e-4
    assert gradient_angle(population.gradient(normal_model, theta, math.inf), exact) < 1e-9


def test_angle_shrinks_like_one_over_the_magnitude():
    # M/(M+r) = 1 - r/M + ..., as long as E_q0[r^2] is finite
    population, theta = one_dimensional(3.0, 0.7), parameters(1.0, 0.2)
    found = angles(population, normal_model, theta, normal_mle_gradient(population, theta), [1e4, 1e5, 1e6, 1e7])
    for earlier, later in zip(found, found[1:], strict=False):
        assert later / earlier == pytest.approx(0.1, rel=0.1)


def test_angle_falls_to_zero_in_two_dimensions():
    x, step = line(-8, 9, 340)
    points = torch.cartesian_prod(x[:, 0], x[:, 0])
    zero, eye = torch.zeros(2, **float64), torch.eye(2, **float64)
    data = MultivariateNormal(torch.tensor([1.5, 0.5], **float64), torch.tensor([[0.5, 0.3], [0.3, 0.8]], **float64))
    population = Population(data, MultivariateNormal(zero, eye), points, step**2)
    theta = [
        torch.tensor([0.2, -0.4], **float64, requires_grad=True),
        torch.tensor([[0.9, 0.0], [-0.2, 1.0]], **float64, requires_grad=True),
    ]
    model = lambda theta: MultivariateNormal(theta[0], scale_tril=theta[1])  # noqa: E731
    log_likelihood = (population.mass_data * model(theta).log_prob(points)).sum()
    exact = [-g for g in torch.autograd.grad(log_likelihood, theta)]
    found = angles(population, model, theta, exact, MAGNITUDES)
    assert all(later < earlier for earlier, later in zip(found, found[1:], strict=False))
    assert found[0] > 0.05 and found[-1] < 1e-4


def test_a_mere_reweighting_does_not_turn_to_maximum_likelihood():
    population, theta = one_dimensional(3.0, 0.7), parameters(1.0, 0.2)
    exact = normal_mle_gradient(population, theta)
    assert gradient_angle(population.gradient(normal_model, theta, 1e6, reweighted_bce), exact) > 0.5


def test_fewer_steps_of_gradient_descent_as_the_magnitude_grows():
    # the figures of method section 0: mean 4, learning rate .05, until |a - mean| < .1; 72 steps of maximum likelihood
    population, log_scale = one_dimensional(4.0, 1.0), torch.zeros((), **float64)

    def steps(magnitude):
        (a,) = parameters(0.0)
        for step in range(1000):
            if abs(a.item() - 4) < 0.1:
                return step
            (gradient,) = population.gradient(lambda theta: normal_model((theta[0], log_scale)), [a], magnitude)
            a = (a - 0.05 * gradient).detach().requires_grad_()
        return None

    assert [steps(m) for m in (1.0, 10.0, 100.0, 1e4, math.inf)] == [555, 294, 203, 128, 72]
