"""What to watch while a log-ratio is learned: per-sample quantities to average, and what follows from the averages."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

# r and r^2 in float32: from f = 40 on they stay at e^40 and e^80, and the effective sample size is about 1 anyway.
_LARGEST_LOG_RATIO = 40.0


def ratio_observations(
    log_ratio_data: Tensor, log_ratio_noise: Tensor, noise_magnitude: float | Tensor
) -> dict[str, Tensor]:
    """Per-sample quantities whose averages describe the state of the ratio (method section 0).

    `ratio_noise` averages to E_q0[r], which is 1 for a true ratio; with `ratio_noise_squared` it gives
    `effective_sample_size`; `saturated_*` marks f > ln M, where a sample has less than half of its weight at M = inf.
    The two sides may differ in shape; `noise_magnitude` is M, as in `objectives.n2ce`, and observed with the data.
    """
    f_data, f_noise = log_ratio_data.detach().float(), log_ratio_noise.detach().float()
    magnitude = torch.as_tensor(noise_magnitude, dtype=f_data.dtype, device=f_data.device)
    log_magnitude = magnitude.log()
    ratio = f_noise.clamp(max=_LARGEST_LOG_RATIO).exp()
    return {
        "log_ratio_data": f_data,
        "log_ratio_noise": f_noise,
        "ratio_noise": ratio,
        "ratio_noise_squared": ratio.square(),
        "saturated_data": (f_data > log_magnitude).float(),
        "saturated_noise": (f_noise > log_magnitude).float(),
        "noise_magnitude": magnitude.expand_as(f_data),
    }


def effective_sample_size(mean_ratio: float, mean_squared_ratio: float, num_samples: int) -> float:
    """(sum r)^2 / sum r^2 on n noise samples, from the means of r and r^2: n when all weigh the same, 1 when one does.

    0 when every ratio underflowed to 0.
    """
    return num_samples * mean_ratio**2 / mean_squared_ratio if mean_squared_ratio > 0 else 0.0


def gradient_angle(gradient: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """The angle in radians, in [0, pi], between two gradients given per parameter; NaN if one of them is 0.

    2 atan2(|u - v|, |u + v|) of the unit vectors (Kahan): the arc cosine has no digits near angle 0.
    """
    u, v = _unit(gradient), _unit(reference)
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


def _unit(gradient: Iterable[Tensor]) -> Tensor:
    flat = torch.cat([part.detach().double().flatten() for part in gradient])
    return flat / flat.norm()
