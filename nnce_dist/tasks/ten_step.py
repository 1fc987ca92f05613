"""Tuning a few-step sampler against a density ratio: DxMI (Yoon et al. 2024) with N2CE as its energy update.

One network V(x) is the value of every state and, at the last one, the energy E(x) = -ln r(x), r = p_data / p_sampler.
Costs: lower is better. One iteration, in the order of method section 2:

1. roll out the sampler;
2. move the velocities v_t;
3. energy:  N2CE on f = -V between data and x_T, plus gamma E[f^2];
4. value:   V(x_t) regressed on V(x_{t+1}) + cost_t, from the data backwards;
5. sampler: V(x') + tau2 ||x' - x_t||^2 / (2 v_t dim) - tau1 ln s_t on fresh transitions x'.

Trap: V takes no time, so one network meets states from data to pure noise; see `models.mlp.ValueMLP`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..config import schema
from ..ratio.diagnostics import ratio_observations
from ..samplers.divergence import require_near, sample_observations
from ..samplers.ten_step import TenStepSampler
from . import dxmi
from .edm_loss import one_hot
from .frozen import frozen
from .objective import magnitude_of, ratio_loss, regularisation_weight
from .settings import optimiser_settings
from .task import Batch, LossAndObservations, OptimiserSettings, Random, Update

_SMALLEST_LOGGED_NOISE = 1e-4  # where a last s_t is 0, its entropy term is a constant


class TenStepTask:
    """The updates of `sampler` and of `value`, a network `value(x, labels) -> (B,)`, and the velocities.

    `num_samples` counts the distinct data, for an automatic M; infinite where they never repeat.

    Every transition belongs to the sample whose roll-out it is part of: a sample visits its T transitions in an order
    of its own, and its T + 1 states count as one sample of the value's update.
    """

    def __init__(
        self,
        sampler: TenStepSampler,
        value: nn.Module,
        settings: schema.TenStep,
        objective: schema.Objective,
        num_classes: int,
        num_samples: float = math.inf,
    ):
        if settings.sampler_batches > sampler.num_steps:
            raise ValueError(
                f"ten_step.sampler_batches={settings.sampler_batches} exceeds ten_step.num_steps={sampler.num_steps}: "
                "a sample has one transition per step"
            )
        self.settings, self.objective, self.num_classes = settings, objective, num_classes
        self.magnitude = magnitude_of(objective, settings.training.samples, value, num_samples)
        self.networks = {"value": value, "sampler": sampler}
        self.optimisers: dict[str, OptimiserSettings] = {
            "value": optimiser_settings(settings.value),
            "sampler": optimiser_settings(settings.sampler, lr_scales={"log_noise": settings.log_sigma_lr_scale}),
        }
        self.velocity = sampler.schedule.velocity.float()
        self.costs = dxmi.time_costs(sampler.num_steps, settings.time_cost, settings.time_cost_sigmoid)

    def updates(
        self, batch: Batch, random: Random, samples_seen: int, mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> Iterator[Update]:
        """The optimiser steps of one iteration: energy, values, then the sampler once its warm-up is over.

        Raises DivergedError, before any of them, when the samples are no pictures any more.
        """
        labels = one_hot(batch.labels, self.num_classes)
        with frozen(self.networks["sampler"]) as sampler:
            states = sampler.roll_out(batch.x.shape[1:], random, labels)
        seen = sample_observations(states[-1], batch.x)
        require_near(mean_over_ranks(seen["far_off"].mean()), samples_seen)
        self.velocity = self._next_velocity(mean_over_ranks(dxmi.mean_squared_steps(states)))
        self.costs = self.costs.to(states.device)
        noise_magnitude = self.magnitude.at(samples_seen)
        value_labels = labels if self.settings.value_conditional else None
        first, *others = self._value_updates(batch.x, states, value_labels, noise_magnitude)
        yield from (replace(first, loss=partial(_and_observed, first.loss, seen)), *others)
        self.magnitude.conclude(mean_over_ranks)
        if samples_seen >= self.settings.value_warmup_samples:
            yield from self._sampler_updates(states, labels, random)

    def extra_state(self) -> dict[str, Tensor]:
        """The velocities v_t (T,), and what an automatic M knows."""
        return {"velocity": self.velocity, **self.magnitude.extra_state()}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self.velocity = state["velocity"]
        self.magnitude.load_extra_state(state)

    def _next_velocity(self, mean_squared: Tensor) -> Tensor:
        """v_t moved towards those of a roll-out; one that is not finite, whose steps are skipped, moves nothing."""
        velocity = self.velocity.to(mean_squared.device)
        moved = torch.lerp(mean_squared, velocity, self.settings.velocity_decay)
        return torch.where(mean_squared.isfinite().all(), moved, velocity)

    def _value_updates(self, x: Tensor, states: Tensor, labels: Tensor | None, m: float) -> Iterator[Update]:
        if self.settings.value_steps == "joint":
            yield Update("value", partial(self._joint_loss, x, states, labels, m), len(x))
            return
        yield Update("value", partial(self._energy_loss, x, states[-1], labels, m), len(x))
        for t in reversed(range(len(states) - 1)):
            yield Update("value", partial(self._difference_loss, states[t], states[t + 1], t, labels), len(x))

    def _energy_loss(
        self, x: Tensor, fake: Tensor, labels: Tensor | None, m: float, part: slice
    ) -> LossAndObservations:
        energy_data, energy_fake = self._values(torch.stack([x[part], fake[part]]), labels, part)
        return self._observed_energy_loss(energy_data, energy_fake, m)

    def _difference_loss(
        self, x: Tensor, x_next: Tensor, t: int, labels: Tensor | None, part: slice
    ) -> LossAndObservations:
        with torch.no_grad():
            (target,) = self._values(x_next[None, part], labels, part)
        (values,) = self._values(x[None, part], labels, part)
        error = dxmi.temporal_difference(values, target, self.costs[t])
        return error, {"temporal_difference": error.detach()}

    def _joint_loss(
        self, x: Tensor, states: Tensor, labels: Tensor | None, m: float, part: slice
    ) -> LossAndObservations:
        """The energy's loss and the mean temporal difference over the sample's T transitions, in one step."""
        data, *values = self._values(torch.cat([x[None, part], states[:, part]]), labels, part)
        values = torch.stack(values)
        error = dxmi.temporal_difference(values[:-1], values[1:], self.costs[:, None]).mean(0)
        energy, observations = self._observed_energy_loss(data, values[-1], m)
        return energy + self.settings.value_weight * error, observations | {"temporal_difference": error.detach()}

    def _observed_energy_loss(self, energy_data: Tensor, energy_fake: Tensor, m: float) -> LossAndObservations:
        """N2CE of the log-ratios f = -E at M = m, with its regulariser."""
        gamma = regularisation_weight(self.objective, m)
        loss = ratio_loss(self.objective.kind, -energy_data, -energy_fake, m, gamma)
        self.magnitude.show(-energy_data, -energy_fake)
        observations = ratio_observations(-energy_data, -energy_fake, m)
        return loss, {"loss": loss.detach(), **observations}

    def _values(self, states: Tensor, labels: Tensor | None, part: slice) -> Tensor:
        """V of several states of each sample in one pass: (K, b, ...) -> (K, b)."""
        repeated = None if labels is None else labels[part].repeat(len(states), 1)
        return self.networks["value"](states.flatten(0, 1), repeated).float().unflatten(0, states.shape[:2])

    def _sampler_updates(self, states: Tensor, labels: Tensor | None, random: Random) -> Iterator[Update]:
        count, num_samples = self.settings.sampler_batches, states.shape[1]
        order = random.uniform(len(states) - 1).argsort(1)[
            :, :count
        ]  # (B, count): each sample's own order of its steps
        for t in order.split(count if self.settings.sampler_steps == "joint" else 1, dim=1):
            noise = random.normal(t.shape[1], *states.shape[2:])
            yield Update("sampler", partial(self._sampler_loss, states, t, noise, labels), num_samples)

    def _sampler_loss(
        self, states: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None, part: slice
    ) -> LossAndObservations:
        """Mean over a sample's chosen steps t (B, k) of the loss of a fresh transition from each."""
        t, count = t[part], t.shape[1]
        x = states[:, part][t, torch.arange(len(t), device=t.device)[:, None]].flatten(0, 1)  # (b k, ...)
        repeated = None if labels is None else labels[part].repeat_interleave(count, dim=0)
        loss, observations = self._transition_loss(x, t.flatten(), noise[part].flatten(0, 1), repeated)
        means = {name: values.detach().unflatten(0, (-1, count)).mean(1) for name, values in observations.items()}
        return loss.unflatten(0, (-1, count)).mean(1), means

    def _transition_loss(self, x: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None) -> LossAndObservations:
        """energy_weight V(x') + 1{t < T - skip} (tau2 running cost - tau1 ln s_t)."""
        sampler, settings = self.networks["sampler"], self.settings
        x_next = sampler(x, t, noise, labels)
        with frozen(self.networks["value"]) as value:
            cost = value(x_next, labels if settings.value_conditional else None).float()
        running_cost = dxmi.running_cost(x, x_next, self.velocity.clamp(min=settings.velocity_floor)[t])
        entropy = sampler.noise_scales().clamp(min=_SMALLEST_LOGGED_NOISE).log()[t]
        applies = t < sampler.num_steps - settings.skip
        loss = settings.energy_weight * cost + applies * (settings.tau2 * running_cost - settings.tau1 * entropy)
        return loss, {"loss": loss, "value": cost, "running_cost": running_cost, "log_noise_scale": entropy}


def _and_observed(
    loss: Callable[[slice], LossAndObservations], seen: Mapping[str, Tensor], part: slice
) -> LossAndObservations:
    """The loss, and what else was observed of its samples."""
    losses, observations = loss(part)
    return losses, observations | {name: values[part] for name, values in seen.items()}
