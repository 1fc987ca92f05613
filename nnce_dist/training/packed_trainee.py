"""How a stacked network moves: every trial at its own learning rate, until it leaves the pack (see `packed.py`)."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..tasks.task import OptimiserSettings
from .state import Trainee, learning_rate_factor


class Members:
    """Which trials of a pack are still training: all but those that had a gradient that is not finite, or were stopped.

    A trial that has left keeps its network as it was then.
    """

    def __init__(self, num_trials: int):
        self.left_at = torch.full((num_trials,), -1)  # samples seen; -1: still training
        self.failed = torch.zeros(num_trials, dtype=torch.bool)

    @property
    def training(self) -> list[int]:
        """The numbers of the trials that are."""
        return (self.left_at < 0).nonzero().flatten().tolist()

    def leave(self, leaving: Tensor, samples_seen: int, failed: bool = False) -> None:
        """Those of the trials (trials,) that were still training are no more."""
        leaving = leaving.to(self.left_at.device) & (self.left_at < 0)
        self.left_at[leaving], self.failed[leaving] = samples_seen, failed


class PackedTrainee(Trainee):
    """A stacked network whose trials have learning rates and clipping of their own."""

    def __init__(self, network: nn.Module, settings: Sequence[OptimiserSettings], members: Members):
        super().__init__(network, replace(settings[0], lr=1.0))
        for group in self.optimiser.param_groups:
            group["lr"] = group["lr_scale"]
        self._each, self._members = settings, members
        self._max_norm = torch.tensor([math.inf if s.clip_norm is None else s.clip_norm for s in settings])
        self._max_value = torch.tensor([math.inf if s.clip_value is None else s.clip_value for s in settings])

    def set_learning_rate(self, samples_seen: int, total_samples: int, rate: float = 1.0) -> None:
        """The rate of every trial for the step that starts here."""
        rates = [rate * s.lr * learning_rate_factor(samples_seen, total_samples, s) for s in self._each]
        self._rates, self._samples_seen = torch.tensor(rates, device=self.parameters[0].device), samples_seen

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of each trial's gradient (trials,)."""
        return torch.stack([g.view(len(g), -1).norm(dim=1) for g in gradients]).norm(dim=0)

    @torch.no_grad()
    def step(self, gradients: list[Tensor], norm: Tensor) -> None:
        """Moves the trials that are still training; those whose gradient is not finite leave before they move."""
        self._members.leave(~norm.isfinite(), self._samples_seen, failed=True)
        moving = (self._members.left_at < 0).to(norm.device)
        scale = (self._max_norm.to(norm) / (norm + 1e-6)).clamp(max=1.0).masked_fill(~moving, 0.0)
        for gradient in gradients:
            limit = _expand(self._max_value.to(gradient), gradient)
            gradient.masked_fill_(~_expand(moving, gradient), 0.0).clamp_(-limit, limit).mul_(_expand(scale, gradient))
        before = [parameter.clone() for parameter in self.parameters]
        self.optimiser.step()
        rates = self._rates * moving
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, _expand(rates, old)))


def _expand(values: Tensor, like: Tensor) -> Tensor:
    """(trials,) as (trials, 1, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
