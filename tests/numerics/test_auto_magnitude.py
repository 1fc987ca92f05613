"""M=auto against what its derivation says.

Run: python -m pytest tests/numerics/test_auto_magnitude.py
"""

import dataclasses
import math

import pytest
import torch

from nnce_dist.ratio import auto_magnitude as auto
from nnce_dist.ratio.closed_form import Gaussian, log_ratio
from nnce_dist.ratio.objectives import n2ce

FRESH = auto.evidence(5, math.inf)


def logits(shift: float, stretch: float, num: int = 50_000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """`stretch` times the true log-ratio of N(shift, 1) to N(0, 1), on samples of both."""
    p, q = Gaussian(torch.tensor([shift]), torch.eye(1)), Gaussian(torch.zeros(1), torch.eye(1))
    generator, f = torch.Generator().manual_seed(seed), log_ratio(p, q)
    return stretch * f(p.sample(num, generator)), stretch * f(q.sample(num, generator))


def after(f_data: torch.Tensor, f_noise: torch.Tensor, known: auto.Evidence, steps: int = 300) -> auto.AutoState:
    """The state once these log-ratios have been seen so many times."""
    state = auto.AutoState.start(*f_data.shape[:-1])
    for _ in range(steps):
        means = {name: values.mean(-1) for name, values in auto.observe(state, f_data, f_noise).items()}
        state = auto.advance(state, means, known)
    return state


def test_under_confident_log_ratios_get_the_floor():
    f_data, f_noise = logits(4.0, 0.5)
    log_m = auto.log_magnitude(after(f_data, f_noise, FRESH))
    assert log_m > 1
    assert torch.sigmoid(log_m - f_data).mean() == pytest.approx(auto.WEIGHT_FLOOR, abs=0.01)


@pytest.mark.parametrize("shift", [0.05, 1.0, 2.0])
def test_over_confident_log_ratios_and_those_near_ratio_one_get_m_1(shift):
    assert auto.log_magnitude(after(*logits(shift, 2.0), FRESH)) == 0
    assert auto.log_magnitude(after(*logits(0.05, 0.5), FRESH)) == 0


def test_the_true_log_ratio_has_no_deficit():
    assert after(*logits(2.0, 1.0, 200_000), FRESH, 60).deficit == pytest.approx(0, abs=0.01)
    assert after(*logits(2.0, 0.7), FRESH).deficit > 0.1 > -0.1 > after(*logits(2.0, 1.4), FRESH).deficit


def test_the_stretch_is_minus_the_loss_derivative_along_the_stretch():
    f_data, f_noise = logits(2.0, 0.8, 1000)
    state = dataclasses.replace(auto.AutoState.start(), midpoint=torch.tensor(0.3))
    stretch = torch.zeros((), requires_grad=True)
    loss_data, loss_noise = n2ce(*((1 + stretch) * (f - 0.3) + 0.3 for f in (f_data, f_noise)), 1.0)
    (loss_data.mean() + loss_noise.mean()).backward()
    assert auto.observe(state, f_data, f_noise)["stretch"].mean() == pytest.approx(-stretch.grad.item(), rel=1e-4)


def test_fitted_log_ratios_are_worse_on_fresh_samples_by_parameters_over_samples():
    """The correction p/n: logistic regression (M = 1) fitted to its optimum, its stretch on samples it has not seen."""
    dim, num, shift, repeats = 10, 400, 0.4, 60
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(repeats, 2, num, dim, generator=generator, dtype=torch.float64)
    x[:, 0] += shift
    phi = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    theta = torch.zeros(repeats, dim + 1, 1, dtype=torch.float64)
    for _ in range(15):  # Newton
        prob = torch.sigmoid(phi @ theta[:, None])
        gradient = (phi[:, 1] * prob[:, 1]).mean(1) - (phi[:, 0] * (1 - prob[:, 0])).mean(1)
        hessian = phi.mT @ (phi * prob * (1 - prob)) / num
        theta -= torch.linalg.solve(hessian.sum(1), gradient[..., None])
    fresh = torch.randn(repeats, 2, 20_000, dim, generator=generator)
    fresh[:, 0] += shift
    f = (fresh.double() @ theta[:, None, :-1] + theta[:, None, -1:]).squeeze(-1)
    seen = auto.observe(auto.AutoState.start(repeats), f[:, 0], f[:, 1])["stretch"].mean()
    assert seen == pytest.approx(-(dim + 1) / num, rel=0.25)


def test_few_samples_close_the_gate_and_cap_the_floor():
    f_data, f_noise = logits(4.0, 0.5)
    assert auto.log_magnitude(after(f_data, f_noise, auto.evidence(50_000, 500))) == 0
    f_data = 100 + f_data
    assert auto.log_magnitude(after(f_data, f_noise, auto.evidence(2, 500))) == pytest.approx(math.log(500) / 2)
    assert auto.log_magnitude(after(f_data, f_noise, FRESH)) == pytest.approx(math.log(1e4))


def test_trials_side_by_side_are_the_trials_alone():
    pairs = [logits(shift, 0.7, 500) for shift in (1.0, 3.0, 5.0)]
    together = after(torch.stack([p for p, _ in pairs]), torch.stack([q for _, q in pairs]), FRESH)
    alone = [after(p, q, FRESH) for p, q in pairs]
    for field in dataclasses.fields(auto.AutoState):
        expected = torch.stack([getattr(state, field.name) for state in alone])
        torch.testing.assert_close(getattr(together, field.name), expected)


def test_a_step_that_cannot_be_used_changes_nothing():
    state = after(*logits(3.0, 0.7), FRESH)
    for bad in (torch.full((8,), math.nan), torch.full((8,), math.inf)):
        means = {name: values.mean(-1) for name, values in auto.observe(state, bad, bad).items()}
        assert auto.advance(state, means, FRESH) == state
