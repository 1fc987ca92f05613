"""The density-ratio job: a network for ln p/q, trained at one M and measured."""

import math

from torch import Tensor, nn

from ..config.schema import Config
from ..evaluation.ratio_error import LogRatio, cross_entropy, measure, root_mean_square
from ..ratio.telescoping import telescoped
from ..tasks.density_ratio import DensityRatioTask
from . import build
from .job import DIVERGED, Job
from .learning import Learning, Networks
from .pairs import Pairs, open_pairs
from .trials import constants


def learning(job: Job) -> Learning:
    """The network of one trial; its first weights follow from the seed."""
    config = job.config
    pairs = job.once(f"pairs of seed {config.run.seed}", lambda: open_pairs(config))
    network, settings = build.log_ratio(config, pairs.dim), config.density_ratio
    task = DensityRatioTask(network, settings, config.objective, pairs.train.num_distinct)

    def select(networks: Networks) -> float:
        selection = criterion(learned(config, networks["ratio"]), pairs)
        return selection if math.isfinite(selection) else math.inf

    def finish(networks: Networks, samples: int) -> dict:
        job.save_weights(networks["ratio"])
        known = {"samples": samples, "noise_magnitude": task.magnitude.at(samples), "seed": config.run.seed}
        return known | measured(learned(config, networks["ratio"]), pairs)

    return Learning(task, settings, pairs.train, finish, select, constants(config))


def measured(f: LogRatio, pairs: Pairs) -> dict:
    """The figures of an estimate, and the one by which it is chosen; a note where they are not finite."""
    figures = measure(f, *pairs.test, pairs.truth, pairs.kl)
    selection = criterion(f, pairs)
    if not all(map(math.isfinite, [selection, *figures.values()])):
        return {"selection": math.inf, "figures": {}, "note": DIVERGED}
    return {"selection": selection, "figures": {name: [value] for name, value in figures.items()}}


def criterion(f: LogRatio, pairs: Pairs) -> float:
    """What trials are chosen by: the error of ln r where the truth is known, otherwise cross-entropy; lower is better.

    Cross-entropy hardly sees errors where r is far above 1: for that it is a poor guide at a large divergence.
    """
    data, noise = pairs.selection
    if pairs.truth is None:
        return cross_entropy(f(data), f(noise))
    return root_mean_square(f(data).double() - pairs.truth(data.double()))


def learned(config: Config, network: nn.Module) -> LogRatio:
    """The estimated log-ratio, float32 on the CPU; the merely reweighted cross-entropy learns K times ln(r/M)."""
    objective, num_bridges = config.objective, config.density_ratio.num_bridges
    whole = telescoped(network.cpu().eval().requires_grad_(False), num_bridges)
    offset = num_bridges * math.log(objective.noise_magnitude) if objective.kind == "reweighted_bce" else 0.0

    def f(x: Tensor) -> Tensor:
        return whole(x) + offset

    return f
