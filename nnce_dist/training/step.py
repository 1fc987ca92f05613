"""One optimiser step: backward over micro-batches, reduction over ranks, finite check, clipping, the move."""

import torch
from torch import Tensor

from ..tasks.task import Update
from .runtime import Runtime
from .state import Trainee


class NonFiniteError(FloatingPointError):
    """A gradient was not finite more often than the run tolerates."""

    @classmethod
    def at(cls, network: str, samples_seen: int, skipped: int = 1, tolerated: int = 0) -> "NonFiniteError":
        """The error of a step that moved nothing."""
        return cls(
            f"the gradient of {network!r} is not finite at {samples_seen:,} samples ({skipped} such steps, {tolerated} "
            "tolerated); nothing was moved; lower the learning rate, or set training.max_skipped_steps or rollback"
        )


class GpuMemoryError(ValueError):
    """The samples of one backward pass do not fit into the GPU's memory."""


def micro_batches(num_samples: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` samples; size 0 takes all at once."""
    size = size or num_samples
    return [slice(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]


def accumulate_gradients(update: Update, trainee: Trainee, batch: int, micro_batch: int) -> list[dict[str, Tensor]]:
    """Gradients of the mean loss over the global `batch`, this rank's part of the sum, in the parameters' `.grad`.

    Gives the per-sample observations of each micro-batch. Raises GpuMemoryError, naming a smaller micro-batch.
    """
    trainee.optimiser.zero_grad(set_to_none=True)
    observed = []
    for part in micro_batches(update.num_samples, micro_batch):
        try:
            losses, observations = update.loss(part)
            (losses.float().sum() / batch).backward(inputs=trainee.parameters)
        except torch.OutOfMemoryError as error:
            raise GpuMemoryError(_too_large(update.network, part.stop - part.start)) from error
        observed.append({name: values.detach() for name, values in observations.items()})
    return observed


def _too_large(network: str, samples: int) -> str:
    """What did not fit, and the next smaller number of samples that may."""
    peak = torch.cuda.max_memory_allocated() / 2**30
    remedy = f"set training.micro_batch={samples // 2} (the batch stays)" if samples > 1 else "use a smaller network"
    return f"{network!r}: out of GPU memory with {samples} samples at a time (peak {peak:.2f} GiB); {remedy}"


def reduce_gradients(gradients: list[Tensor], runtime: Runtime) -> None:
    """Sums gradients over ranks, in one message."""
    if runtime.world_size == 1:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    runtime.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def apply_update(update: Update, trainee: Trainee, runtime: Runtime, batch: int, micro_batch: int, observe) -> bool:
    """Moves one network by one update. False, on every rank alike and with nothing moved, if a gradient is not finite.

    `batch` is the global one. `observe(network name, per-sample observations)` is called once per micro-batch, unless
    the step is left out: one NaN would hide what the others of a log line have shown.
    """
    observed = accumulate_gradients(update, trainee, batch, micro_batch)
    gradients = [p.grad for p in trainee.parameters if p.grad is not None]
    reduce_gradients(gradients, runtime)
    norm = trainee.gradient_norm(gradients)  # of each trial, if there are several
    if not torch.isfinite(norm).any():
        return False
    weighed = norm[..., None].expand(*norm.shape, update.num_samples)  # as the samples are
    for observations in [*observed, {"gradient_norm": weighed}]:
        observe(update.network, observations)
    trainee.step(gradients, norm)
    return True
