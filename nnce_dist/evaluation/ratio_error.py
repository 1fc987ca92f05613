"""How good an estimated log-ratio f is, on held-out vectors of both sides; beside the truth where it is known.

Every figure's name says its number of vectors a side: `log_ratio_error_data@10k`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..ratio.objectives import nce
from .evaluate import count_name

LogRatio = Callable[[Tensor], Tensor]  # (B, D) -> (B,)


def root_mean_square(error: Tensor) -> float:
    """sqrt(mean e^2)."""
    return error.square().mean().sqrt().item()


def cross_entropy(f_data: Tensor, f_noise: Tensor) -> float:
    """The NCE loss of both sides in nats: a proper score, least for the true log-ratio, whatever M trained it."""
    return sum(side.mean() for side in nce(f_data, f_noise)).item()


def log_mean_ratio(f_noise: Tensor) -> float:
    """ln E_q[e^f], which is 0 for a true ratio."""
    return f_noise.logsumexp(0).item() - math.log(len(f_noise))


def estimates(f_data: Tensor, f_noise: Tensor) -> dict[str, float]:
    """What log-ratios f on data (n,) and noise (m,) say about KL(p || q) and calibration.

    The lower bound is Donsker & Varadhan's, E_p[f] - ln E_q[e^f].
    """
    kl, log_mean = f_data.mean().item(), log_mean_ratio(f_noise)
    return {
        "kl_estimate": kl,
        "kl_lower_bound": kl - log_mean,
        "calibration_error": abs(log_mean),
        "cross_entropy": cross_entropy(f_data, f_noise),
    }


@torch.no_grad()
def measure(
    log_ratio: LogRatio, data: Tensor, noise: Tensor, truth: LogRatio | None = None, kl: float | None = None
) -> dict[str, float]:
    """Figures of f on held-out data (n, D) and noise (m, D), in float64; errors where truth and KL are given."""
    f_data, f_noise = log_ratio(data).double(), log_ratio(noise).double()
    figures = estimates(f_data, f_noise)
    if truth is not None:
        figures["log_ratio_error_data"] = root_mean_square(f_data - truth(data.double()))
        figures["log_ratio_error_noise"] = root_mean_square(f_noise - truth(noise.double()))
    if kl is not None:
        figures["kl_error"] = abs(figures["kl_estimate"] - kl)
    suffix = count_name(min(len(data), len(noise)))
    return {f"{name}@{suffix}": value for name, value in figures.items()}
