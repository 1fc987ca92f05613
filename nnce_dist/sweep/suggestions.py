"""Trials that Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) suggests from the results before them.

Suggestions come in batches, each from all that is known of the batches before: a function of the history and the seed.
"""

import math
from collections.abc import Mapping
from functools import cached_property

from .cohorts import cohorts
from .history import History, Segment, Strategy
from .space import Distribution, Point, rounded, stream


class Suggested(Strategy):
    """`trials` trials, `batch` suggested at a time, of which `together` share a process. Needs the package optuna."""

    def __init__(
        self, space: Mapping[str, Distribution], trials: int, batch: int, samples: int, seed: int, together: int = 1
    ):
        self._space, self._trials, self._batch, self._samples, self._seed = space, trials, batch, samples, seed
        self._together = together
        self._asked: list[Point] = []

    def segments(self, history: History) -> list[Segment]:
        """What is missing of the first batch that is not over."""
        for first in range(0, self._trials, self._batch):
            batch = range(first, min(first + self._batch, self._trials))
            if first == len(self._asked):
                self._asked += self._suggest(batch, history)
            if missing := [n for n in batch if (n, self._samples) not in history]:
                parts = cohorts(batch, self._together, first)
                return [Segment(n, self._samples, self._asked[n], cohort=parts[n]) for n in missing]
        return []

    def _suggest(self, batch: range, history: History) -> list[Point]:
        """Ignores what came later of a failed trial that was tried again: those of the batch have their settings."""
        optuna, history = self._optuna, history.when((n, self._samples) for n in range(batch.start))
        random = stream(self._seed, "suggest", batch.start).randrange(2**32)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=random, constant_liar=True))
        for number, point in enumerate(self._asked):
            if (score := history.score(number, self._samples)) < math.inf:
                study.add_trial(optuna.trial.create_trial(params=point, distributions=self._distributions, value=score))
        asked = (study.ask(self._distributions).params for _ in batch)
        return [{key: rounded(v) if isinstance(v, float) else v for key, v in point.items()} for point in asked]

    @cached_property
    def _optuna(self):
        import optuna  # an optional dependency; `stages/preflight.py` says so where it is missing

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return optuna

    @cached_property
    def _distributions(self) -> dict:
        optuna = self._optuna.distributions
        kinds = {
            "choice": lambda *values: optuna.CategoricalDistribution(values),
            "uniform": optuna.FloatDistribution,
            "loguniform": lambda low, high: optuna.FloatDistribution(low, high, log=True),
            "integer": optuna.IntDistribution,
        }
        return {key: kinds[what.kind](*what.values) for key, what in self._space.items()}
