"""Noise levels, and the transition coefficients of few-step stochastic samplers. All numbers are float64.

A few-step sampler goes from noise (t = 0) to data (t = T): x_{t+1} ~ N(mu_t(x_t), s_t^2 I). With a denoiser D and the
noise it predicts, eps = (c x - D(c x; sigma)) / sigma, where c takes the state's scale to the denoiser's,

    mu_t(x) = x_multiplier x + eps_multiplier eps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_BASE_BETA_FIRST, _BASE_BETA_LAST, _BASE_STEPS = 1e-4, 0.02, 1000  # DDPM (Ho et al. 2020), section 4
_FIXED_LAST_NOISE = 1e-3


@dataclass(frozen=True)
class FewStepSchedule:
    """Coefficients of T transitions, each (T,) and in the order noise to data."""

    sigma: Tensor  # noise level at which the denoiser is asked
    input_scale: Tensor  # c
    x_multiplier: Tensor
    eps_multiplier: Tensor
    noise: Tensor  # s_t before any learning
    learned: Tensor  # bool: which s_t may be learned
    velocity: Tensor  # where the mean squared step per coordinate starts
    initial_scale: float  # standard deviation of x_0

    @property
    def denoised_weight(self) -> Tensor:
        """Weight of D in mu_t = state_weight x + denoised_weight D, which has no small difference divided by sigma."""
        return -self.eps_multiplier / self.sigma

    @property
    def state_weight(self) -> Tensor:
        """Weight of x in the same form."""
        return self.x_multiplier + self.eps_multiplier * self.input_scale / self.sigma


def karras_sigmas(num_levels: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Falling noise levels (num_levels,) from sigma_max to sigma_min (EDM, equation 5, without the final 0)."""
    place = torch.linspace(0, 1, num_levels, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + place * (low - high)) ** rho


def with_zero(sigmas: Tensor) -> Tensor:
    """The levels and the final 0: (N,) -> (N + 1,)."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def ancestral_split(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """How far to denoise, and how much noise to add, to get from one level to the next: (sigma_down, sigma_up).

    sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2 and sigma_down^2 + sigma_up^2 = sigma'^2, so sigma_down =
    sigma'^2 / sigma (DDPM's posterior variance in EDM's scale; method section 2).
    """
    return sigma_next**2 / sigma, (sigma_next**2 * (sigma**2 - sigma_next**2)).sqrt() / sigma


def karras_schedule(
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    keep_last_noise: bool = False,
) -> FewStepSchedule:
    """Ancestral steps between Karras levels, in EDM's scale (DxMI's ImageNet64 recipe, method section 2).

    The last step goes to 0 without noise; with `keep_last_noise` (DxMI's T4 variant) there is one level more and no 0,
    so that the last step ends at sigma_min and its noise is learned too.
    """
    if keep_last_noise:
        levels = karras_sigmas(num_steps + 1, sigma_min, sigma_max, rho)
    else:
        levels = with_zero(karras_sigmas(num_steps, sigma_min, sigma_max, rho))
    sigma, sigma_next = levels[:-1], levels[1:]
    sigma_down, sigma_up = ancestral_split(sigma, sigma_next)
    return FewStepSchedule(
        sigma=sigma,
        input_scale=torch.ones_like(sigma),
        x_multiplier=torch.ones_like(sigma),
        eps_multiplier=sigma_down - sigma,
        noise=sigma_up,
        learned=sigma_next > 0,
        velocity=sigma_up**2,
        initial_scale=float(sigma_max),
    )


def var_etas(num_steps: int) -> Tensor:
    """Variances eta_i = beta_0 (1 + i x)^2, i = 0 at the data (Kong & Ping 2021, the quadratic VAR schedule).

    x is such that the product of 1 - eta_i is DDPM's after its 1,000 steps, but at most .95 / (sqrt(beta_0) T), which
    keeps every eta below 1: for ten steps that bound decides, x = 9.5.
    """
    steps = torch.arange(num_steps, dtype=torch.float64)

    def etas(x: float) -> Tensor:
        return _BASE_BETA_FIRST * (1 + steps * x) ** 2

    target = math.exp(log_alpha_bar(_BASE_STEPS - 1))
    bound = 0.95 / (math.sqrt(_BASE_BETA_FIRST) * num_steps)
    return etas(_bisect(lambda x: (1 - etas(x)).prod().item(), target, 0.0, bound))


def var_schedule(num_steps: int) -> FewStepSchedule:
    """Variance-preserving steps of the VAR schedule (DxMI's CIFAR-10 recipe, method section 2).

    With g = prod(1 - eta) here and a the same one step on (1 at the data): s^2 = (1-a)/(1-g) (1-g/a) and mu =
    sqrt(a/g) x + (sqrt(1-a-s^2) - sqrt((1-g)a/g)) eps. The last s, 0 by that formula, stays fixed at .001.
    """
    etas = var_etas(num_steps)
    gamma_bar = (1 - etas).cumprod(0).flip(0)
    g, a = gamma_bar, torch.cat([gamma_bar[1:], gamma_bar.new_ones(1)])
    variance = (1 - a) / (1 - g) * (1 - g / a)
    last = torch.arange(num_steps) == num_steps - 1
    return FewStepSchedule(
        sigma=((1 - g) / g).sqrt(),
        input_scale=g**-0.5,
        x_multiplier=(a / g).sqrt(),
        eps_multiplier=(1 - a - variance).clamp(min=0).sqrt() - ((1 - g) * a / g).sqrt(),
        noise=torch.where(last, _FIXED_LAST_NOISE, variance.sqrt()),
        learned=~last,
        velocity=etas.flip(0),
        initial_scale=1.0,
    )


def log_alpha_bar(tau: float) -> float:
    """ln of DDPM's prod_{i <= tau} (1 - beta_i), continued to real tau by the Gamma function (method section 2).

    The factors fall linearly, so that prod = delta^{tau+1} Gamma(c+1) / Gamma(c-tau) with c = (1 - beta_0) / delta.
    """
    delta = (_BASE_BETA_LAST - _BASE_BETA_FIRST) / (_BASE_STEPS - 1)
    c = (1 - _BASE_BETA_FIRST) / delta
    return (tau + 1) * math.log(delta) + math.lgamma(c + 1) - math.lgamma(c - tau)


def ddpm_time(alpha_bar: float) -> float:
    """The time tau at which a DDPM network (linear betas, 1,000 steps) meets this alpha_bar."""
    return _bisect(log_alpha_bar, math.log(alpha_bar), 0.0, float(_BASE_STEPS))


def _bisect(falling: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a falling function meets the target; the nearer end if it does not within [low, high]."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return (low + high) / 2
