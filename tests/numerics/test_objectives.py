"""The objectives against 60-digit arithmetic, their limits in M, their extremes and their contract.

Run: python -m pytest tests/numerics/test_objectives.py
"""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nnce_dist.ratio.objectives import n2ce, nce, nwj, ratio_regularisation, reweighted_bce

mpmath.mp.dps = 60
MAGNITUDES = [1.0, 1.0 + 2**-20, 1.5, 3.0, 10.0, 100.0, 1e4, 1e6, 1e8, 1e10, 1e12]
AS_GIVEN = {"float": lambda m, like: m, "tensor": lambda m, like: torch.tensor(m, dtype=like.dtype)}
any_log_ratio = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_magnitude = st.one_of(st.floats(1, 1e12), st.sampled_from([1.0, 1e13, 1e30, 1e38, 3e38, 1e39, 1e300, math.inf]))


def log_ratios(magnitude, dtype):
    """|f| <= 60, densely where the data side crosses zero and where its branches meet."""
    turn = min(math.log(magnitude), 60.0)
    spread = torch.logspace(-7, 0, 15, dtype=torch.float64)
    near = torch.cat([-spread, torch.zeros(1, dtype=torch.float64), spread])
    grid = [torch.linspace(-60, 60, 121, dtype=torch.float64), near, turn + near]
    return torch.cat(grid).clamp(-60, 60).to(dtype).requires_grad_()


def exact(f, magnitude):
    """Data loss, noise loss and their derivatives, each a list of 60-digit numbers."""
    m = mpmath.mpf(magnitude)
    rows = []
    for value in f.tolist():
        r = mpmath.exp(mpmath.mpf(value))
        rows.append((mpmath.log(1 / r + 1 / m), m * mpmath.log1p(r / m), -1 / (1 + r / m), 1 / (1 / r + 1 / m)))
    return zip(*rows, strict=True)


def value_and_gradient(objective, f):
    """Data loss, noise loss, their derivatives: four tensors like f."""
    data, noise = objective(f, f)
    return (
        data.detach(),
        noise.detach(),
        *(torch.autograd.grad(side.sum(), f, retain_graph=True)[0] for side in (data, noise)),
    )


def assert_near(got, wanted, relative, absolute=0.0):
    worst = max(
        abs(mpmath.mpf(a) - b) / max(relative * abs(b), mpmath.mpf(absolute))
        for a, b in zip(got.tolist(), wanted, strict=True)
    )
    assert worst <= 1, f"{float(worst):.3g} times the tolerance"


@pytest.mark.parametrize("kind", AS_GIVEN)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_float32_against_high_precision(magnitude, kind):
    f = log_ratios(magnitude, torch.float32)
    given = AS_GIVEN[kind](magnitude, f)
    got = value_and_gradient(lambda data, noise: n2ce(data, noise, given), f)
    data, noise, data_gradient, noise_gradient = exact(f, float(given))
    assert_near(got[0], data, 1e-5, absolute=1e-6)
    assert_near(got[1], noise, 1e-5)
    assert_near(got[2], data_gradient, 1e-5)
    assert_near(got[3], noise_gradient, 1e-5)


@pytest.mark.parametrize("magnitude", [1.0, 100.0, 1e12])
def test_float64_against_high_precision(magnitude):
    f = log_ratios(magnitude, torch.float64)
    got = value_and_gradient(lambda data, noise: n2ce(data, noise, magnitude), f)
    for side, wanted, absolute in zip(got, exact(f, magnitude), (1e-14, 0, 0, 0), strict=True):
        assert_near(side, wanted, 1e-13, absolute)


@pytest.mark.parametrize("magnitude", [1e14, 1e20, 1e32, 1e38, 1e300])
def test_between_the_tested_range_and_infinity_nothing_underflows(magnitude):
    f = torch.linspace(-60, 30, 181, requires_grad=True)
    got = value_and_gradient(lambda data, noise: n2ce(data, noise, magnitude), f)
    for side, wanted, absolute in zip(got, exact(f, magnitude), (1e-6, 0, 0, 0), strict=True):
        assert_near(side, wanted, 1e-5, absolute)


def test_smallest_magnitude_is_binary_cross_entropy():
    f = log_ratios(1.0, torch.float32)
    bce = [F.binary_cross_entropy_with_logits(f, torch.full_like(f, y), reduction="none") for y in (1.0, 0.0)]
    for losses in (nce(f, f), n2ce(f, f, 1.0), n2ce(f, f, 1), n2ce(f, f, torch.tensor(1.0)), reweighted_bce(f, f, 1.0)):
        torch.testing.assert_close(losses, tuple(bce), rtol=1e-6, atol=1e-6)  # torch's own is off by 5e-7


@pytest.mark.parametrize("kind", AS_GIVEN)
def test_infinite_magnitude_is_nwj(kind):
    f = log_ratios(1.0, torch.float32)
    got = value_and_gradient(lambda data, noise: n2ce(data, noise, AS_GIVEN[kind](math.inf, f)), f)
    for side, wanted in zip(got, value_and_gradient(nwj, f), strict=True):
        assert torch.equal(side, wanted)
    e_f = [mpmath.exp(value) for value in f.tolist()]
    assert_near(got[1], e_f, 1e-5)
    assert_near(got[3], e_f, 1e-5)
    assert torch.equal(got[0], -f) and (got[2] == -1).all()


@pytest.mark.parametrize("magnitude", [1.0, 7.0, 1e6, 1e12])
def test_continuous_in_the_magnitude(magnitude):
    f = log_ratios(magnitude, torch.float32)
    for here, there in zip(n2ce(f, f, magnitude), n2ce(f, f, magnitude * (1 + 1e-6)), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=2e-6)


def test_reaches_nwj_in_the_limit():
    f = torch.linspace(-20, 20, 81)
    for far, limit in zip(n2ce(f, f, 1e16), nwj(f, f), strict=True):
        torch.testing.assert_close(far, limit, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(f=st.floats(-60, 60, width=32), low=any_magnitude, high=any_magnitude)
def test_data_loss_falls_and_noise_loss_grows_with_the_magnitude(f, low, high):
    f, (low, high) = torch.tensor(f), sorted((low, high))
    (data_low, noise_low), (data_high, noise_high) = n2ce(f, f, low), n2ce(f, f, high)
    assert data_high <= data_low + 1e-6 + 1e-5 * abs(data_low)
    assert noise_high >= noise_low * (1 - 1e-5)


@settings(deadline=None)
@given(f=any_log_ratio, magnitude=any_magnitude, kind=st.sampled_from(sorted(AS_GIVEN)))
def test_finite_for_every_finite_input(f, magnitude, kind):
    f = torch.tensor([f], requires_grad=True)
    for objective in (n2ce, reweighted_bce):
        got = value_and_gradient(lambda a, b, of=objective: of(a, b, AS_GIVEN[kind](magnitude, f)), f)
        assert all(side.isfinite().all() for side in got), (objective, got)


@pytest.mark.parametrize("f", [1e30, -1e30, 3.4e38, -3.4e38, 1e-45, 88.8, 64.0, 1e9])
@pytest.mark.parametrize("magnitude", [1.0, 100.0, 1e12, math.inf])
def test_extremes_keep_value_gradient_and_sign(f, magnitude):
    data, noise, data_gradient, noise_gradient = value_and_gradient(
        lambda a, b: n2ce(a, b, magnitude), torch.tensor([f], requires_grad=True)
    )
    assert all(side.isfinite().all() for side in (data, noise, data_gradient, noise_gradient))
    assert -1 <= data_gradient <= 0 <= noise_gradient <= max(min(magnitude, math.exp(64)), 1) * (1 + 1e-6)
    if f == -1e30:
        assert data == 1e30 and data_gradient == -1 and noise == 0
    if f == 1e30 and magnitude <= 100:
        torch.testing.assert_close(noise.item(), magnitude * 1e30)
        assert noise_gradient == magnitude


def test_exponential_goes_on_along_its_tangent():
    f = torch.tensor([64.0, 65.0, 1064.0], dtype=torch.float64, requires_grad=True)
    _, noise, _, gradient = value_and_gradient(nwj, f)
    torch.testing.assert_close(noise, math.exp(64) * torch.tensor([1.0, 2.0, 1001.0], dtype=torch.float64))
    torch.testing.assert_close(gradient, torch.full_like(gradient, math.exp(64)))


def test_a_zero_logit_at_magnitude_one_pulls_by_a_half():
    _, _, data_gradient, noise_gradient = value_and_gradient(
        lambda a, b: n2ce(a, b, 1.0), torch.zeros(3, requires_grad=True)
    )
    assert (data_gradient == -0.5).all() and (noise_gradient == 0.5).all()


@pytest.mark.parametrize("magnitude", [1.0, 30.0, math.inf])
def test_second_derivatives(magnitude):
    f = torch.linspace(-5, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a: n2ce(a, a, magnitude), (f,))


def test_the_ratio_is_the_optimum_for_every_magnitude_and_not_for_a_mere_reweighting():
    q_star, q0 = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])

    def gradient(objective, f):
        f = f.requires_grad_()
        data, noise = objective(f, f)
        return torch.autograd.grad((q_star * data + q0 * noise).sum(), f)[0]

    ratio = (q_star / q0).log()
    for m in (1.0, 10.0, 1e6, math.inf):
        assert gradient(lambda a, b, m=m: n2ce(a, b, m), ratio.clone()).abs().max() < 1e-6
    reweighted = lambda a, b: reweighted_bce(a, b, 10.0)  # noqa: E731
    assert gradient(reweighted, ratio - math.log(10)).abs().max() < 1e-6
    assert gradient(reweighted, ratio.clone()).abs().max() > 0.1


@pytest.mark.parametrize("given_as", [100.0, torch.tensor(100.0)], ids=["float", "tensor"])
def test_float32_inside_autocast(given_as):
    f = torch.linspace(-30, 30, 61).bfloat16()
    outside = n2ce(f.float(), f.float(), given_as)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = n2ce(f, f, given_as)
    for a, b in zip(inside, outside, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_one_magnitude_per_sample():
    f = torch.linspace(-3, 9, 4)[:, None]
    magnitudes = torch.tensor([1.0, 50.0, 1e12, math.inf])[:, None]
    together = n2ce(f, f, magnitudes)
    for i, m in enumerate(magnitudes[:, 0].tolist()):
        for row, alone in zip(together, n2ce(f[i], f[i], m), strict=True):
            torch.testing.assert_close(row[i], alone)


def test_sides_of_different_size():
    data, noise = n2ce(torch.zeros(3, 1, 2, 2), torch.zeros(5), 10.0)
    assert data.shape == (3, 1, 2, 2) and noise.shape == (5,)


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 4), (1, 1, 1), (2, 1)])
def test_a_magnitude_that_would_enlarge_the_losses_is_refused(shape):
    with pytest.raises(ValueError, match=r"noise_magnitude has shape .*\(4, 1\)"):
        n2ce(torch.zeros(4, 1), torch.zeros(4, 1), torch.ones(shape))


@pytest.mark.parametrize("magnitude", [0.999, 0.0, -3.0, math.nan, -math.inf])
def test_a_magnitude_below_one_is_refused_in_one_line(magnitude):
    with pytest.raises(ValueError, match="from 1 .NCE. to inf") as caught:
        n2ce(torch.zeros(2), torch.zeros(2), magnitude)
    assert "\n" not in str(caught.value)


def test_a_tensor_magnitude_is_never_read_on_the_host():
    f = torch.zeros(4, device="meta")  # has no values: reading one raises
    for m in (torch.ones((), device="meta"), torch.ones(4, device="meta")):
        assert [side.shape for side in n2ce(f, f, m)] == [(4,), (4,)]


def test_ratio_regularisation_is_the_squared_log_ratio():
    data, noise = ratio_regularisation(torch.tensor([2.0, -3.0]), torch.tensor([0.5]).bfloat16())
    assert data.tolist() == [4.0, 9.0] and noise.tolist() == [0.25] and noise.dtype == torch.float32
