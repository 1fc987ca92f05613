"""M=auto in a run: `ratio/auto_magnitude.py` fed with the log-ratios of every step, micro-batch by micro-batch."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple

import torch
from torch import Tensor, nn

from ..ratio import auto_magnitude as rule


class AutoMagnitude:
    """Where M comes from when nobody gives it; a `NoiseMagnitude` whose way follows from what it is shown.

    `num_samples` counts the distinct data, of which a run sees `total_samples`, some then more than once. The network's
    parameters are shared out among `num_ratios` log-ratios that are shown together. The rule's state stays on the CPU,
    so that M is a plain number.
    """

    milestones = (1.0, rule.CEILING)

    def __init__(self, network: nn.Module, num_samples: float, total_samples: int, num_ratios: int = 1):
        repeated = num_samples if total_samples > num_samples else math.inf
        self.known = rule.evidence(sum(p.numel() for p in network.parameters()) / num_ratios, repeated)
        self.state = rule.AutoState.start()
        self._seen: list[dict[str, Tensor]] = []

    @classmethod
    def stacked(cls, each: Sequence["AutoMagnitude"]) -> "AutoMagnitude":
        """Several of one run's data and network as one, whose log-ratios and M have the trials as first dimension."""
        together = copy.copy(each[0])
        together.state = rule.AutoState(*map(torch.stack, zip(*(astuple(one.state) for one in each), strict=True)))
        together._seen = []
        return together

    def at(self, samples_seen: int) -> float | list[float]:
        """M of the next step."""
        return rule.log_magnitude(self.state).exp().tolist()

    def show(self, log_ratio_data: Tensor, log_ratio_noise: Tensor) -> None:
        """The log-ratios (b,) of one micro-batch of the step."""
        state = rule.AutoState(*(value.to(log_ratio_data.device) for value in astuple(self.state)))
        self._seen.append(rule.observe(state, log_ratio_data, log_ratio_noise))

    def conclude(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Ends the step: what all ranks have shown moves the state, on all of them alike."""
        parts, self._seen = self._seen, []
        names = list(parts[0])
        batch = torch.stack([torch.cat([part[name] for part in parts], -1).mean(-1) for name in names])
        means = dict(zip(names, mean_over_ranks(batch).cpu(), strict=True))
        self.state = rule.advance(self.state, means, self.known)

    def extra_state(self) -> dict[str, Tensor]:
        """The rule's state (4,), or (4, trials)."""
        return {"auto_magnitude": torch.stack(astuple(self.state))}

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        self.state, self._seen = rule.AutoState(*state["auto_magnitude"].cpu()), []  # what a step that failed had shown
