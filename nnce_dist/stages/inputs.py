"""What jobs read: training and held-out data, the evaluation's features, reference statistics and labels."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Config, Evaluation
from ..data import synthetic
from ..data.bad_samples import SKIPPED
from ..data.pack import pack
from ..data.shards import order
from ..data.stream import ShardSource, open_stream
from ..evaluation.evaluate import Reference
from ..evaluation.evaluate import reference as reference_statistics
from ..evaluation.features import FeatureNetwork, load_features
from .folder import run_root

_log = logging.getLogger(__name__)

_REFERENCE_BATCH = 256


def cache_dir(config: Config) -> Path:
    """Where copies of shards, made pictures and reference statistics are kept for all runs."""
    return Path(config.data.cache_dir or Path(config.run.dir) / "cache").absolute()


def made_patterns(config: Config) -> tuple[str, str]:
    """Shard patterns of the project's own pictures (training, held out); drawn and packed the first time."""
    made = config.data.made
    patterns = []
    for indices in (range(made.train), range(made.train, made.train + made.val)):
        folder = cache_dir(config) / f"made-{made.seed}-{indices.start}-{indices.stop}-{made.shard_size}"
        patterns.append(pack(synthetic.source(indices, made.seed), folder, made.shard_size))
    return patterns[0], patterns[1]


def patterns(config: Config) -> tuple[str, str]:
    """Shard patterns (training, held out): the user's, or those of the made pictures."""
    return (config.data.train, config.data.val) if config.data.train else made_patterns(config)


def skipped_list(config: Config) -> Path:
    """Where a run lists the bad samples that it leaves out."""
    return run_root(config) / SKIPPED


def open_train(config: Config, say: Callable[[str], None] = _log.info) -> ShardSource:
    """The training stream; `say` hears how far the indexing of a new set is."""
    return open_stream(patterns(config)[0], config.data, cache_dir(config), True, skipped_list(config), say)


def open_val(config: Config, say: Callable[[str], None] = _log.info) -> ShardSource:
    """The held-out pictures; `say` as for `open_train`."""
    return open_stream(patterns(config)[1], config.data, cache_dir(config), False, skipped_list(config), say)


def classes_known(config: Config) -> bool:
    """Whether the feature network can tell the classes of these data: only those of the made pictures."""
    return not config.data.train


def feature_network(config: Config, device: torch.device | str) -> FeatureNetwork:
    """The evaluation's feature network: Inception when weights are given, the bundled one otherwise."""
    return load_features(config.evaluation.features, config.evaluation.inception_weights, device)


def spread(total: int, wanted: int) -> np.ndarray:
    """At most `wanted` sample numbers, drawn over all: a stride would meet only some of classes that come in turn."""
    return np.sort(order(0, 0, total)[:wanted])


def reference(config: Config, data: ShardSource, features: FeatureNetwork) -> Reference:
    """Statistics of (at most `evaluation.reference_samples`) training pictures, cached by the data's digest."""
    chosen = spread(len(data), config.evaluation.reference_samples)

    def batches() -> Iterator[Tensor]:
        for part in np.array_split(chosen, math.ceil(len(chosen) / _REFERENCE_BATCH)):
            yield data.raw(part)[0]

    digest = f"{data.digest[:12]}{len(chosen):x}"
    return reference_statistics(batches(), features, cache_dir(config), digest)


def label_marginal(counts: Tensor) -> Callable[[range], Tensor]:
    """Labels for sample numbers with the frequencies of the training data: exact over every full cycle of its size."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    total = len(labels)
    stride = next(s for s in range(int(0.618 * total) + 1, total + 2) if math.gcd(s, total) == 1)
    return lambda ids: labels[torch.arange(ids.start, ids.stop) * stride % total]


def with_draws(settings: Evaluation, draws: int, num_samples: int | None = None) -> Evaluation:
    """The evaluation's settings with another number of draws, and of samples if given."""
    return dataclasses.replace(settings, draws=draws, num_samples=num_samples or settings.num_samples)
