"""Learning f = ln p/q from pairs (data, noise): the plainest use of the objectives of `ratio/objectives.py`.

f is a sum of K bridges (`ratio/telescoping.py`), each learned like a ratio by itself, at the same M; K = 1 is f itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from ..config import schema
from ..ratio.diagnostics import ratio_observations
from ..ratio.telescoping import coefficients, combined, mixed, neighbours
from .objective import magnitude_of, ratio_loss, regularisation_weight
from .settings import optimiser_settings
from .task import Batch, LossAndObservations, Numbers, OptimiserSettings, Random, Update


class DensityRatioTask:
    """One update per batch of `network`, (B, K, D) -> (B, K); batches are x (B, 2, D), data first.

    Trials can be stacked (`task.StackableTask`). `num_samples` counts the distinct pairs, for an automatic M; infinite
    where they never repeat. Observations, and what an automatic M is shown, are of all bridges together: means over
    them, each at its own ends, from which that of f on p or q does not follow.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: schema.DensityRatio,
        objective: schema.Objective,
        num_samples: float = math.inf,
    ):
        self.settings, self.objective = settings, objective
        self.networks = {"ratio": network}
        self.optimisers: dict[str, OptimiserSettings] = {"ratio": optimiser_settings(settings.optimiser)}
        length, parts = settings.training.samples, settings.num_bridges
        self.magnitude = magnitude_of(objective, length, network, num_samples, parts)

    def updates(
        self, batch: Batch, random: Random, samples_seen: int, mean_over_ranks: Callable[[Tensor], Tensor]
    ) -> Iterator[Update]:
        """One optimiser step."""
        numbers = self.numbers(self.magnitude.at(samples_seen))

        def on(part: slice) -> LossAndObservations:
            loss, seen = self.loss(self.networks["ratio"], batch.x[part], numbers)
            self.magnitude.show(seen["log_ratio_data"], seen["log_ratio_noise"])
            return loss, seen

        yield Update("ratio", on, len(batch))
        self.magnitude.conclude(mean_over_ranks)

    def numbers(self, m: float) -> dict[str, float]:
        """M and gamma of a step at M = m."""
        return {"noise_magnitude": m, "gamma": regularisation_weight(self.objective, m)}

    def loss(self, network: Callable[[Tensor], Tensor], x: Tensor, numbers: Numbers) -> LossAndObservations:
        """The objective of pairs x (b, 2, D), its mean over bridges (b,); observations (b K,) of each bridge's ends."""
        ends = neighbours(self.waymarks(x))  # (b, 2, K, D)
        log_ratio_data, log_ratio_noise = network(ends.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        loss = ratio_loss(self.objective.kind, log_ratio_data, log_ratio_noise, **numbers).mean(1)
        observations = ratio_observations(
            log_ratio_data.flatten(), log_ratio_noise.flatten(), numbers["noise_magnitude"]
        )
        return loss, {"loss": loss.detach(), **observations}

    def waymarks(self, x: Tensor) -> Tensor:
        """From data to noise: pairs (b, 2, D) -> (b, K+1, D)."""
        s = self.settings
        if s.num_bridges == 1:
            return x  # as both ways give it, in no time
        if s.waymarks == "mixed":
            return mixed(x, s.num_bridges)
        return combined(x, coefficients(s.num_bridges, s.bridge_power, x.device))

    def extra_state(self) -> dict[str, Tensor]:
        """What an automatic M knows."""
        return self.magnitude.extra_state()

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        self.magnitude.load_extra_state(state)
