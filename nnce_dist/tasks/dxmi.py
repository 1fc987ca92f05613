"""The equations of DxMI (Yoon et al. 2024) with N2CE as its energy update; method section 2.

E is the energy -ln r, r = p_data / p_sampler, and V the value, the same network; costs, so lower is better. States run
from noise (t = 0) to data (t = T).
"""

import torch
from torch import Tensor

from ..config import schema
from ..samplers.schedules import FewStepSchedule, karras_schedule, var_schedule


def few_step_schedule(settings: schema.TenStep) -> FewStepSchedule:
    """The schedule that the settings name."""
    if settings.schedule == "karras":
        return karras_schedule(
            settings.num_steps, settings.sigma_min, settings.sigma_max, settings.rho, settings.keep_last_noise
        )
    if settings.keep_last_noise:
        raise ValueError("ten_step.keep_last_noise belongs to ten_step.schedule=karras; the VAR schedule fixes it")
    return var_schedule(settings.num_steps)


def running_cost(x: Tensor, x_next: Tensor, velocity: Tensor) -> Tensor:
    """||x' - x||^2 / (2 v dim) per sample (b,), for velocities v (b,)."""
    return (x_next - x).square().flatten(1).mean(1) / (2 * velocity)


def time_costs(num_steps: int, constant: float, sigmoid: float) -> Tensor:
    """cost_t = constant + sigmoid (S(T/2 - t) - S(T/2 - t - 1)) for t = 0 .. T-1, S the logistic function (T,)."""
    place = num_steps / 2 - torch.arange(num_steps + 1, dtype=torch.float64)
    return (constant - sigmoid * place.sigmoid().diff()).float()


def temporal_difference(values: Tensor, next_values: Tensor, costs: Tensor) -> Tensor:
    """(V(x_t) - sg[V(x_{t+1}) + cost_t])^2; there is no target network."""
    return (values - (next_values.detach() + costs)).square()


def mean_squared_steps(states: Tensor) -> Tensor:
    """mean ||x_{t+1} - x_t||^2 / dim of each step (T,), for states (T + 1, B, ...)."""
    return states.diff(dim=0).flatten(1).square().mean(1)
