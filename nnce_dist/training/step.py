"""One optimiser step: backward over micro-batches, reduction over ranks, finite check, clipping, the move."""

import torch
from torch import Tensor

from ..tasks.task import Update
from .runtime import Runtime
from .state import Trainee


class NonFiniteError(FloatingPointError):
    """A gradient was not finite more often than the run tolerates."""


def micro_batches(num_samples: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` samples; size 0 takes all at once."""
    size = size or num_samples
    return [slice(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]


def accumulate_gradients(update: Update, trainee: Trainee, world_size: int, micro_batch: int, observe) -> None:
    """Gradients of the mean loss over the global batch, this rank's part of the sum, in the parameters' `.grad`."""
    trainee.optimiser.zero_grad(set_to_none=True)
    total = update.num_samples * world_size
    for part in micro_batches(update.num_samples, micro_batch):
        losses, observations = update.loss(part)
        (losses.float().sum() / total).backward(inputs=trainee.parameters)
        observe(update.network, observations)


def reduce_gradients(gradients: list[Tensor], runtime: Runtime) -> None:
    """Sums gradients over ranks, in one message."""
    if runtime.world_size == 1:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    runtime.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def clip(gradients: list[Tensor], norm: Tensor, max_norm: float | None, max_value: float | None) -> None:
    """Clips by value, or scales to a norm, in place."""
    if max_value is not None:
        torch._foreach_clamp_min_(gradients, -max_value)
        torch._foreach_clamp_max_(gradients, max_value)
    if max_norm is not None:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))


def apply_update(update: Update, trainee: Trainee, runtime: Runtime, micro_batch: int, observe) -> bool:
    """Moves one network by one update. False, on every rank alike and with nothing moved, if a gradient is not finite.

    `observe(network name, per-sample observations)` is called once per micro-batch.
    """
    accumulate_gradients(update, trainee, runtime.world_size, micro_batch, observe)
    gradients = [p.grad for p in trainee.parameters if p.grad is not None]
    reduce_gradients(gradients, runtime)
    norm = torch.nn.utils.get_total_norm(gradients)
    if not torch.isfinite(norm):
        return False
    observe(update.network, {"gradient_norm": norm.reshape(1)})
    clip(gradients, norm, trainee.settings.clip_norm, trainee.settings.clip_value)
    trainee.optimiser.step()
    return True
