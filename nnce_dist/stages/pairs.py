"""What a density-ratio job reads: pairs to train on, vectors to measure with, and the truth where it is known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.schema import Config
from ..data.shards import order
from ..data.vectors import FreshPairs, VectorPairs, read_pairs
from ..evaluation.ratio_error import LogRatio
from ..ratio.closed_form import log_ratio
from ..ratio.families import pair
from ..training.seeding import fold
from .job import EVALUATION, SELECTION

DRAWN = 15  # key of the random stream that fixed sets are drawn from

Sides = tuple[Tensor, Tensor]  # vectors of p (n, D) and of q (m, D)


@dataclass(frozen=True)
class Pairs:
    """The two sides of a ratio."""

    train: VectorPairs | FreshPairs
    test: Sides  # for the reported figures
    selection: Sides  # for choosing among trials; reported figures never see it
    dim: int
    truth: LogRatio | None = None
    kl: float | None = None  # KL(p || q) in nats


def open_pairs(config: Config) -> Pairs:
    """The pairs that the settings ask for; draws follow from `run.seed`, the parts of given vectors do not."""
    settings = config.density_ratio
    return _given(config) if settings.vectors else _drawn(config)


def _given(config: Config) -> Pairs:
    sides = [_parted(side, config.density_ratio.holdout) for side in read_pairs(config.density_ratio.vectors)]
    train, test, selection = zip(*sides, strict=True)
    return Pairs(VectorPairs(*train), test, selection, train[0].shape[1])


def _parted(vectors: Tensor, holdout: float) -> tuple[Tensor, Tensor, Tensor]:
    """Three parts in an order that is always the same; the last two are halves of what is held out."""
    shuffled = vectors[torch.from_numpy(order(0, 0, len(vectors)).copy())]
    held = max(int(holdout * len(vectors)) // 2, 1)
    return shuffled[2 * held :], shuffled[:held], shuffled[held : 2 * held]


def _drawn(config: Config) -> Pairs:
    settings = config.density_ratio
    p, q = pair(settings.family, settings.dim, settings.kl)

    def draw(key: int, number: int) -> Sides:
        generator = torch.Generator().manual_seed(fold(config.run.seed, key))
        return p.sample(number, generator).float(), q.sample(number, generator).float()

    test, selection = (draw(key, settings.test_samples) for key in (EVALUATION, SELECTION))
    if settings.num_samples:
        train = VectorPairs(*draw(DRAWN, settings.num_samples))
    else:
        train = FreshPairs(p.sample, q.sample, f"{settings.family} {settings.dim} {settings.kl}")
    return Pairs(train, test, selection, settings.dim, log_ratio(p, q), settings.kl)
