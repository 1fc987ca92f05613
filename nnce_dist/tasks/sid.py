"""The equations of score identity distillation (SiD, Zhou et al. 2024) and of its critic (SiDA, Zhou et al. 2025).

x_g is a generated sample, f_phi the teacher's and f_psi the fake score's denoised x_g + sigma noise, D the critic's
logits, read as the log-ratio ln p_data/p_generator at noise level sigma, M the noise magnitude of its N2CE objective.
"""

import math

from torch import Tensor

from ..ratio.objectives import n2ce
from .edm_loss import edm_weight, expand, per_sample

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # EDM, table 1


def warped_sigma(uniform: Tensor, t_max: int) -> Tensor:
    """sigma(u) for u ~ U(0, t_max/1000): EDM's spacing (equation 5), sigma_min at u = 0 and sigma_max at u = 1."""
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    u = uniform * (t_max / 1000)
    return (high + (1 - u) * (low - high)) ** RHO


def residual_weight(x_g: Tensor, f_phi: Tensor, floor: float) -> Tensor:
    """w = mean |x_g - f_phi| per sample (B,), at least `floor`, without gradient; the losses divide by it.

    With few coordinates w comes near 0 by chance and 1/w has heavy tails: 2-D problems need a floor of about 0.05.
    """
    return (x_g - f_phi).detach().abs().flatten(1).mean(1).clamp(min=floor)


def identity_loss(x_g: Tensor, f_phi: Tensor, f_psi: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """SiD's generator loss per sample (B,): <f_phi - f_psi, (f_phi - x_g) - alpha (f_phi - f_psi)> / w.

    Equals ((1 - alpha) ||f_phi - f_psi||^2 + <f_phi - f_psi, f_psi - x_g>) / w; every factor here is a small
    difference, so no large terms cancel. The gradient goes through x_g, f_phi and f_psi.
    """
    difference = f_phi - f_psi
    return per_sample(difference * ((f_phi - x_g) - alpha * difference) / expand(weight, x_g))


def critic_loss(log_ratio_data: Tensor, log_ratio_fake: Tensor, sigma: Tensor, sigma_data: float, m: float) -> Tensor:
    """SiDA's critic loss per sample (B,) with N2CE in place of cross-entropy (the same at M = 1): w_EDM(sigma_i) b / 2.

    b is one number, the mean of both sides over samples and places, so the loss depends on the micro-batch.
    """
    loss_data, loss_fake = n2ce(log_ratio_data, log_ratio_fake, m)
    return edm_weight(sigma, sigma_data) * (loss_data.mean() + loss_fake.mean()) / 2


def clipped_log_ratio(log_ratio: Tensor, m: float, clip: float) -> Tensor:
    """D with |D - ln M| <= clip; at M = inf, where the objective is linear in D, |D| <= clip."""
    centre = math.log(m) if math.isfinite(m) else 0.0
    return (log_ratio.float() - centre).clamp(-clip, clip) + centre


def adversarial_loss(log_ratio_fake: Tensor, m: float, clip: float) -> Tensor:
    """The generator's side, a scalar: mean over samples and places of softplus(ln M - D) - ln M, D clipped.

    It is N2CE's data side at generated samples: cross-entropy's non-saturating loss at M = 1, -D at M = inf.
    """
    clipped = clipped_log_ratio(log_ratio_fake, m, clip)
    return n2ce(clipped, clipped[:0], m)[0].mean()


def check_clip(m: float, clip: float) -> None:
    """Raises ValueError where an undecided critic, D = 0, would already be clipped: its gradient would be lost."""
    if math.isfinite(m) and math.log(m) >= clip:
        raise ValueError(
            f"one_step.critic_clip={clip:g} must exceed ln(one_step.critic_noise_magnitude)={math.log(m):.3g}, or the "
            "generator gets no gradient from the critic; raise critic_clip or lower critic_noise_magnitude"
        )
