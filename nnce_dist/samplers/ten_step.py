"""A sampler of few stochastic steps whose noise scales are learned (DxMI, Yoon et al. 2024; method section 2).

pi_theta(x_{t+1} | x_t) = N(mu_theta(x_t, t), s_t^2 I). The coefficients of mu keep the s_t of the schedule; only the
noise that is added uses the learned ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .heun import Normal
from .schedules import FewStepSchedule

Transition = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t (B, ...), t (B,), standard normal noise -> x_{t+1}
Guide = Callable[[Tensor, int], Tensor]  # x_{t+1}, t -> x_{t+1}

_SMALLEST_START = 1e-3  # of a learned s_t


class TenStepSampler(nn.Module):
    """The transitions of a schedule around a denoiser `denoiser(x, sigma, labels)`; both it and ln s_t learn."""

    def __init__(self, denoiser: nn.Module, schedule: FewStepSchedule):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule
        self.log_noise = nn.Parameter(schedule.noise.clamp(min=_SMALLEST_START).log().float())
        for name in ("sigma", "input_scale", "state_weight", "denoised_weight", "noise"):
            self.register_buffer(f"_{name}", getattr(schedule, name).float(), persistent=False)
        self.register_buffer("_learned", schedule.learned, persistent=False)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.log_noise)

    def noise_scales(self) -> Tensor:
        """s_t (T,): learned, or as the schedule has it where that is fixed."""
        return torch.where(self._learned, self.log_noise.exp(), self._noise)

    def mean(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """mu(x_t, t) for states (B, ...) at steps t (B,), one-hot labels (B, num_classes)."""
        denoised = self.denoiser(_at(self._input_scale, t, x) * x, self._sigma[t], labels)
        return _at(self._state_weight, t, x) * x + _at(self._denoised_weight, t, x) * denoised

    def forward(self, x: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x_{t+1} from x_t (B, ...), steps t (B,) and standard normal noise (B, ...)."""
        return self.mean(x, t, labels) + _at(self.noise_scales(), t, x) * noise

    def roll_out(
        self, shape: tuple[int, ...], random: Normal, labels: Tensor | None = None, guide: Guide | None = None
    ) -> Tensor:
        """States (T + 1, B, *shape) from noise to samples; B is that of `random`."""
        x = self.schedule.initial_scale * random.normal(*shape)
        return roll_out(lambda x, t, noise: self(x, t, noise, labels), x, self.num_steps, random, guide)


@torch.no_grad()
def roll_out(transition: Transition, x: Tensor, num_steps: int, random: Normal, guide: Guide | None = None) -> Tensor:
    """All states (T + 1, B, ...) of a chain from x (B, ...) on; `guide` moves each state before the next step."""
    states = [x]
    for t in range(num_steps):
        steps = torch.full((len(x),), t, device=x.device)
        x = transition(x, steps, random.normal(*x.shape[1:]))
        if guide is not None:
            x = guide(x, t)
        states.append(x)
    return torch.stack(states)


def value_guide(value: Callable[[Tensor], Tensor], noise_scales: Tensor, weight: float) -> Guide:
    """x' <- x' - weight s_t grad V(x'), down the cost V (the published code adds it, and climbs if weight > 0)."""

    def guide(x: Tensor, t: int) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value(x).sum(), x)
        return x.detach() - weight * noise_scales[t] * gradient

    return guide


def _at(coefficients: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Each sample's coefficient, shaped to broadcast over x (B, ...)."""
    return coefficients[t].reshape(-1, *[1] * (x.ndim - 1))
