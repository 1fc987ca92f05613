"""Learning f = ln p/q from pairs (data, noise): the plainest use of the objectives of `ratio/objectives.py`."""

import math
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from ..config import schema
from ..ratio.diagnostics import ratio_observations
from .objective import magnitude_of, ratio_loss, regularisation_weight
from .settings import optimiser_settings
from .task import Batch, LossAndObservations, Numbers, OptimiserSettings, Random, Update


class DensityRatioTask:
    """One update per batch of `network`, (B, D) -> (B,); batches are x (B, 2, D), data first.

    Trials can be stacked (`task.StackableTask`). `num_samples` counts the distinct pairs, for an automatic M; infinite
    where they never repeat.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: schema.DensityRatio,
        objective: schema.Objective,
        num_samples: float = math.inf,
    ):
        self.objective = objective
        self.networks = {"ratio": network}
        self.optimisers: dict[str, OptimiserSettings] = {"ratio": optimiser_settings(settings.optimiser)}
        self.magnitude = magnitude_of(objective, settings.training.samples, network, num_samples)

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
        """M, gamma and the scale of the loss in a step at M = m."""
        gamma = regularisation_weight(self.objective, m)
        return {"noise_magnitude": m, "gamma": gamma, "scale": self.magnitude.loss_scale(m)}

    def loss(self, network: Callable[[Tensor], Tensor], x: Tensor, numbers: Numbers) -> LossAndObservations:
        """The objective of pairs x (b, 2, D)."""
        log_ratio_data, log_ratio_noise = network(x.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        loss = ratio_loss(self.objective.kind, log_ratio_data, log_ratio_noise, **numbers)
        observations = ratio_observations(log_ratio_data, log_ratio_noise, numbers["noise_magnitude"])
        return loss, {"loss": loss.detach(), **observations}

    def extra_state(self) -> dict[str, Tensor]:
        """What an automatic M knows."""
        return self.magnitude.extra_state()

    def load_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores it."""
        self.magnitude.load_extra_state(state)
