"""A task's objective, from its settings: which M a step has, and the loss of log-ratios on data and on noise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..config import schema
from ..ratio.magnitude import cosine_ramp, geometric_ramp, piecewise
from ..ratio.objectives import n2ce, ratio_regularisation, reweighted_bce
from .auto_magnitude import AutoMagnitude

OBJECTIVES = {"n2ce": n2ce, "reweighted_bce": reweighted_bce}
CONSTANT = schema.MagnitudeSchedule()
RAMPS = {"geometric": geometric_ramp, "cosine": cosine_ramp}


@dataclass(frozen=True)
class NoiseMagnitude:
    """Where M comes from, step by step: it ends at `final`, on the way that the schedule says."""

    final: float
    schedule: schema.MagnitudeSchedule
    total_samples: int

    def at(self, samples_seen: int) -> float:
        """M of the step that starts after so many samples."""
        s = self.schedule
        if s.kind in ("constant", "auto"):  # auto is for the objective; the one-step critic stays at its M
            return self.final
        fraction = samples_seen / self.total_samples
        if s.kind == "piecewise":
            return piecewise(s.fractions, [*s.magnitudes, self.final], fraction)
        return RAMPS[s.kind](s.start, self.final, min(fraction / s.until, 1.0))

    def show(self, log_ratio_data: Tensor, log_ratio_noise: Tensor) -> None:
        """Nothing follows from the log-ratios of a micro-batch."""

    def conclude(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Nothing follows from the step."""

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing but the samples seen decides."""
        return {}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""

    @property
    def milestones(self) -> list[float]:
        """Every M that the way starts from, stays at or ends at; no other M lies beyond them."""
        ways = {"constant": [], "auto": [], "piecewise": self.schedule.magnitudes}
        return [*ways.get(self.schedule.kind, [self.schedule.start]), self.final]


def magnitude_of(
    objective: schema.Objective, total_samples: int, network: nn.Module, num_samples: float, num_ratios: int = 1
) -> NoiseMagnitude | AutoMagnitude:
    """Where the objective's M comes from; the last three as in `AutoMagnitude`."""
    if objective.schedule.kind == "auto":
        return AutoMagnitude(network, num_samples, total_samples, num_ratios)
    return NoiseMagnitude(objective.noise_magnitude, objective.schedule, total_samples)


def regularisation_weight(objective: schema.Objective, noise_magnitude: float) -> float:
    """gamma, or gamma M/(M+1), which holds gamma (M+1)/M fixed over M.

    At r = 1 every weight in the gradient is M/(M+1), so a smaller M also means more regularisation.
    """
    share = 1 / (1 + 1 / noise_magnitude) if objective.hold_regularisation else 1.0
    return objective.ratio_regularisation * share


def ratio_loss(
    kind: str,
    log_ratio_data: Tensor,
    log_ratio_noise: Tensor,
    noise_magnitude: float | Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """The loss of pairs of log-ratios, both sides and the regulariser: (b,), (b,) -> (b,)."""
    sides = OBJECTIVES[kind](log_ratio_data, log_ratio_noise, noise_magnitude)
    return sum(sides) + gamma * sum(ratio_regularisation(log_ratio_data, log_ratio_noise))
