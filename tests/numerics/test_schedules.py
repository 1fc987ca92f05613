"""Run: pytest tests/numerics/test_schedules.py

The noise schedules equal the published tables of EDM and DxMI, digit for digit.
"""

import math

import mpmath
import pytest
import torch

from nnce_dist.config.schema import TenStep
from nnce_dist.samplers.schedules import (
    ancestral_split,
    ddpm_time,
    karras_schedule,
    karras_sigmas,
    log_alpha_bar,
    var_etas,
    var_schedule,
    with_zero,
)
from nnce_dist.tasks.dxmi import few_step_schedule


def matches(values, table, decimals):
    """Equality after rounding to the table's decimals."""
    table = torch.tensor(table, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(values, dtype=torch.float64), table, rtol=0, atol=0.5001 * 10**-decimals)


def test_var_variances():
    etas = (1e-4, 0.011025, 0.04, 0.087025, 0.1521, 0.235225, 0.3364, 0.455625, 0.5929, 0.748225)
    matches(var_etas(10), etas, 9)
    product = (0.9999, 0.98888, 0.94932, 0.86671, 0.73488, 0.56202, 0.37296, 0.20303, 0.08265, 0.02081)
    matches((1 - var_etas(10)).cumprod(0), product, 5)


def test_var_bisection_meets_ddpm_where_it_can():
    """Ten steps stop at the bracket; a hundred reach the noise of the thousand-step chain."""
    assert math.log((1 - var_etas(100)).prod().item()) == pytest.approx(log_alpha_bar(999), rel=1e-9)


def test_var_times():
    gamma_bar = 1 / (1 + var_schedule(10).sigma ** 2)
    tau = (616.73, 493.98, 394.08, 308.87, 234.86, 170.30, 114.36, 66.87, 28.29, 0.0)
    matches([ddpm_time(g) for g in gamma_bar.tolist()], tau, 2)


def test_alpha_bar_is_the_product_and_its_gamma_continuation():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for t in (0, 1, 499, 999):
        assert log_alpha_bar(t) == pytest.approx((-betas[: t + 1]).log1p().sum().item(), abs=1e-9)
    with mpmath.workdps(60):
        delta = (mpmath.mpf("0.02") - mpmath.mpf("1e-4")) / 999
        c = (1 - mpmath.mpf("1e-4")) / delta
        exact = mpmath.mpf("617.73") * mpmath.log(delta) + mpmath.loggamma(c + 1) - mpmath.loggamma(c - 616.73)
    assert log_alpha_bar(616.73) == pytest.approx(float(exact), abs=1e-9)


def test_var_coefficients():
    s = var_schedule(10)
    matches(s.x_multiplier, (1.9929, 1.5673, 1.3553, 1.2276, 1.1435, 1.0860, 1.0466, 1.0206, 1.0056, 1.0001), 4)
    eps = (1.5069, 0.9702, 0.6917, 0.5215, 0.4064, 0.3208, 0.2495, 0.1813, 0.1051, 0.0100)
    matches(-s.eps_multiplier, eps, 4)
    matches(s.noise, (0.8372, 0.7177, 0.5987, 0.4847, 0.3773, 0.2765, 0.1819, 0.0937, 0.0100, 0.001), 4)
    matches(s.velocity.flip(0), var_etas(10).tolist(), 12)
    assert s.learned.tolist() == [True] * 9 + [False] and s.initial_scale == 1


def test_karras_levels():
    matches(karras_sigmas(10)[:6], (80, 42.42, 21.11, 9.723, 4.066, 1.502), 2)
    matches(karras_sigmas(10)[6:], (0.470, 0.1166, 0.0204, 0.002), 3)
    assert with_zero(karras_sigmas(18)).shape == (19,)


def test_karras_noise():
    s = karras_schedule(10)
    matches(s.noise[:4], (35.96, 18.31, 8.630, 3.694), 2)
    matches(s.noise[4:], (1.396, 0.4464, 0.1130, 0.0201, 0.002, 0), 3)
    assert s.learned.tolist() == [True] * 9 + [False] and s.noise[-1] == 0 and s.initial_scale == 80
    matches(s.velocity, (s.noise**2).tolist(), 12)


def test_ancestral_split_keeps_the_variance():
    sigmas = with_zero(karras_sigmas(10))
    down, up = ancestral_split(sigmas[:-1], sigmas[1:])
    torch.testing.assert_close(down**2 + up**2, sigmas[1:] ** 2)


def test_four_step_variant_ends_at_sigma_min_with_noise():
    s = karras_schedule(4, rho=4, keep_last_noise=True)
    assert len(s.sigma) == 4 and s.learned.all()
    torch.testing.assert_close(s.sigma, karras_sigmas(5, rho=4)[:-1])
    assert s.noise[-1].item() == pytest.approx(0.002, rel=1e-4)


@pytest.mark.parametrize("schedule", [karras_schedule(10), var_schedule(10)], ids=["karras", "var"])
def test_last_step_returns_the_denoised_sample(schedule):
    """At the end mu = D exactly: weights 0 and 1."""
    assert schedule.state_weight[-1].item() == pytest.approx(0, abs=1e-10)
    assert schedule.denoised_weight[-1].item() == pytest.approx(1, abs=1e-10)


def test_settings_name_the_schedule():
    torch.testing.assert_close(few_step_schedule(TenStep()).noise, karras_schedule(10).noise)
    torch.testing.assert_close(few_step_schedule(TenStep(schedule="var")).noise, var_schedule(10).noise)
    with pytest.raises(ValueError, match="keep_last_noise"):
        few_step_schedule(TenStep(schedule="var", keep_last_noise=True))
