"""How much each setting of a sweep matters: the share of the metric's variance that its values alone explain.

The correlation ratio (Pearson 1905) of the metric's ranks, with numbers in bins: the first-order share of a functional
analysis of variance (Hutter et al. 2014), without a model between the trials. It sees a U as it sees a slope; ranks
keep a few huge values from deciding everything. Beside it stands what chance gives: the share under shuffled ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .scale import is_number
from .trials import SEED, SweepData, TrialRow, by_settings, mean_score

LEAST = 8  # different settings; with fewer nothing is said
BINS = 5  # of numbers, at most
PER_BIN = 4  # settings, at least
SHUFFLES, QUANTILE = 1000, 0.95


@dataclass(frozen=True)
class Effect:
    """What one setting explains."""

    key: str
    share: float  # of the variance of the metric's ranks
    chance: float  # the share that 95 of 100 shufflings stay under


def effects(sweep: SweepData) -> list[Effect]:
    """Of every setting that varies, the largest first; none where too few were tried."""
    judged = comparable(sweep)
    if len(judged) < LEAST:
        return []
    ranks = rank([score for _, score in judged])
    shuffled = np.random.default_rng(0).permuted(np.tile(ranks, (SHUFFLES, 1)), axis=1)
    found = []
    for key in (key for key in sweep.keys if key != SEED):
        values = [settings.get(key) for settings, _ in judged]
        groups = grouped(values)
        if groups.max() > 0:
            share, chance = shares(ranks[None], groups)[0], np.quantile(shares(shuffled, groups), QUANTILE)
            found.append(Effect(key, float(share), float(chance)))
    return sorted(found, key=lambda effect: -effect.share)


def comparable(sweep: SweepData) -> list[tuple[dict[str, Any], float]]:
    """Settings and scores, means over seeds, after the same samples; failed trials are left out.

    Of trials that can be stopped or copied that is the end of the first segment: all of them came there, with nothing
    but their own settings. Seeds are averaged because trials that differ in them alone are no further evidence.
    """
    judged = [trial for trial in sweep.trials if trial.state in ("finished", "diverged")]
    if sweep.segmented:
        first, mode = min(one.samples for one in sweep.outcomes), sweep.trials[0].mode
        came = (one for one in sweep.outcomes if one.samples == first and one.value is not None)
        judged = [TrialRow("", "stopped", one.point, "", mode, one.value) for one in came]
    groups = by_settings(judged).values()
    return [(dict(group[0].settings), mean_score(group)) for group in groups]


def rank(scores: Sequence[float]) -> np.ndarray:
    """Ranks from 1; equal scores share the mean of theirs."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def grouped(values: Sequence[Any]) -> np.ndarray:
    """The number of each value's group: values of their own if they are few or words, otherwise bins of equal size."""
    numbers = all(is_number(value) for value in values)
    distinct = sorted(set(values)) if numbers else list(dict.fromkeys(map(str, values)))
    bins = min(BINS, max(len(values) // PER_BIN, 2)) if numbers else len(distinct)
    parts = np.array_split(np.arange(len(distinct)), min(bins, len(distinct)))
    group = {distinct[place]: number for number, part in enumerate(parts) for place in part}
    return np.array([group[value if numbers else str(value)] for value in values])


def shares(ranks: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Variance between the groups over all variance, for each row of ranks (n, trials)."""
    members = np.eye(groups.max() + 1)[groups]  # (trials, groups)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    between = ((centred @ members) ** 2 / members.sum(axis=0)).sum(axis=1)
    total = (centred**2).sum(axis=1)
    return np.divide(between, total, out=np.zeros_like(between), where=total > 0)
