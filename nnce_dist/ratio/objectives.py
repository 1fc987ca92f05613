"""Objectives for learning a log density ratio f = ln r = ln q*/q0: log-ratios in, per-sample losses out.

N2CE is binary cross-entropy on the shifted logit f - ln M with the noise side weighted M: noise-contrastive estimation
with M times as much ("noisier") noise, at an unchanged number of samples (Gutmann & Hyvarinen 2012, their nu).
M = 1 is NCE; M = inf is the NWJ bound (Nguyen, Wainwright & Jordan 2010), whose gradient is that of maximum likelihood:

    grad = int w (q* - r q0) grad f,   w = M / (M + r).

Everything is computed in float32 or wider, whatever the autocast state: inputs are widened, and autocast narrows none
of the operations used here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Limits of float32, kept for wider types too.
_TANGENT_FROM = 64.0  # above it e^f goes on along its tangent
_LARGEST = 1e38  # the most that a loss on noise can be
_SHIFT_IS_EXACT_TO = 1e12  # up to this M, e^(f - ln M) does not underflow for f >= -60


def n2ce(log_ratio_data: Tensor, log_ratio_noise: Tensor, noise_magnitude: float | Tensor) -> tuple[Tensor, Tensor]:
    """The N2CE losses of each sample, less the constant ln M of the data side, so that values compare over M.

    With z = f - ln M (method section 0, form to implement):

        data:   softplus(z) - f  if f < ln M,  else  softplus(-z) - ln M     = ln(1/r + 1/M)
        noise:  M softplus(z)                                                = M ln(1 + r/M)

    Their gradients in f are -M/(M+r) and M r/(M+r). At M = 1 both sides are those of `nce`, at M = inf those of `nwj`.

    Args:
        log_ratio_data: f on samples of q*, any shape.
        log_ratio_noise: f on samples of q0, any shape; the two sides may differ in number.
        noise_magnitude: M in [1, inf], one for all, or a tensor with one value per log-ratio (dimensions of length 1
            are expanded). A tensor's values are not checked, that would wait for the device; it gets no gradient.

    Returns:
        The losses of data and noise in the shapes of the log-ratios, float32 or wider. Value and gradient are finite
        for every finite f: where only e^f remains of the noise side (M = inf), it goes on along its tangent above
        f = 64, and what would pass 1e38 stays there, with gradient 0.

    Raises:
        ValueError: M is below 1 or NaN, or has a shape that would enlarge the losses.
    """
    f_data, f_noise = _widen(log_ratio_data), _widen(log_ratio_noise)
    return _n2ce_data(f_data, noise_magnitude), _n2ce_noise(f_noise, noise_magnitude)


def nce(log_ratio_data: Tensor, log_ratio_noise: Tensor) -> tuple[Tensor, Tensor]:
    """Noise-contrastive estimation, N2CE at M = 1: binary cross-entropy with logit f, per sample."""
    return _softplus(-_widen(log_ratio_data)), _softplus(_widen(log_ratio_noise))


def nwj(log_ratio_data: Tensor, log_ratio_noise: Tensor) -> tuple[Tensor, Tensor]:
    """The NWJ objective, N2CE at M = inf: -f on data, e^f on noise, per sample (large f as in `n2ce`)."""
    return -_widen(log_ratio_data), _exponential(_widen(log_ratio_noise))


def reweighted_bce(
    log_ratio_data: Tensor, log_ratio_noise: Tensor, noise_magnitude: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the noise weighted M but the logit not shifted, for comparison: its optimum is f = ln(r/M).

    Arguments and errors as in `n2ce`, except that M = inf has no meaning here: its losses saturate.
    """
    f_data, f_noise = _widen(log_ratio_data), _widen(log_ratio_noise)
    return _softplus(-f_data), _weighted_softplus(f_noise, _checked(noise_magnitude, f_noise))


def ratio_regularisation(log_ratio_data: Tensor, log_ratio_noise: Tensor) -> tuple[Tensor, Tensor]:
    """(ln r)^2 of each sample on both sides: the variance control gamma E[(ln r)^2], before its weight gamma."""
    return _widen(log_ratio_data).square(), _widen(log_ratio_noise).square()


def _n2ce_data(f: Tensor, magnitude: float | Tensor) -> Tensor:
    # logaddexp takes the branch that does not cancel, and its gradient is right where they meet.
    log_magnitude = _log(_checked(magnitude, f))
    if not isinstance(log_magnitude, Tensor):
        log_magnitude = f.new_full((), log_magnitude)
    return torch.logaddexp(-f, -log_magnitude)


def _n2ce_noise(f: Tensor, magnitude: float | Tensor) -> Tensor:
    magnitude = _checked(magnitude, f)
    z = f - _log(magnitude)
    loss = _weighted_softplus(z, magnitude)
    if not isinstance(magnitude, Tensor) and magnitude <= _SHIFT_IS_EXACT_TO:
        return loss
    # Where e^z vanishes beside 1, the loss is e^f to rounding, also for M = inf and where e^z underflows.
    return torch.where(z < math.log(torch.finfo(f.dtype).eps), _exponential(f), loss)


def _weighted_softplus(z: Tensor, magnitude: float | Tensor) -> Tensor:
    """M softplus(z), with M and the product held to 1e38."""
    magnitude = magnitude.clamp(max=_LARGEST) if isinstance(magnitude, Tensor) else min(magnitude, _LARGEST)
    return magnitude * _softplus(z).clamp(max=_LARGEST / magnitude)


def _softplus(z: Tensor) -> Tensor:
    return F.softplus(z, threshold=40.0)  # the default, 20, costs float64 half its digits


def _exponential(f: Tensor) -> Tensor:
    """e^f, from f = 64 on along its tangent, from f = 1e9 on constant."""
    return f.clamp(max=_TANGENT_FROM).exp() * (1 + F.relu(f - _TANGENT_FROM).clamp(max=1e9))


def _widen(f: Tensor) -> Tensor:
    return f.to(torch.promote_types(f.dtype, torch.float32))


def _log(magnitude: float | Tensor) -> float | Tensor:
    return magnitude.log() if isinstance(magnitude, Tensor) else math.log(magnitude)


def _checked(magnitude: float | Tensor, f: Tensor) -> float | Tensor:
    """M as given, if a number; on the log-ratios' device, with their type and no gradient, if a tensor."""
    if not isinstance(magnitude, Tensor):
        if not magnitude >= 1:  # NaN too
            raise ValueError(f"noise_magnitude is {magnitude}: give a number from 1 (NCE) to inf (NWJ)")
        return magnitude
    if magnitude.dim() and not (
        magnitude.dim() == f.dim() and all(m in (1, n) for m, n in zip(magnitude.shape, f.shape, strict=True))
    ):
        raise ValueError(
            f"noise_magnitude has shape {tuple(magnitude.shape)} and the log-ratios {tuple(f.shape)}: "
            "give one number, or one per log-ratio with as many dimensions"
        )
    return magnitude.detach().to(f)
