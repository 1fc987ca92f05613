"""What can be found wrong in seconds, before anything expensive starts. Each problem is one line; all are listed."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import room
from ..config.checks import unbridgeable
from ..config.schema import Config
from ..data.check import check as check_shards
from ..data.vectors import read_pairs
from ..evaluation.inception import load_weights as load_inception_weights
from ..models.weights import differences, load_weights
from . import build, sweep_preflight
from .budget import within
from .estimate import Estimate
from .folder import run_root
from .jobs import JobsFailedError
from .launch import uses_ray


def _shards(config: Config) -> None:
    for pattern in filter(None, (config.data.train, config.data.val)):
        try:
            check_shards(pattern, config.data)
        except TimeoutError:
            if not run_root(config).exists():
                raise
            # a run that has begun has copies, and goes on with them while the store does not answer


def _fits(setting: str, path: Path, build_network: Callable[[Config], torch.nn.Module], config: Config) -> None:
    """Raises ValueError unless a weights file is of the architecture that the configuration builds."""
    with torch.device("meta"):
        network = build_network(config)
    if differing := differences(network, load_weights(path)):
        raise ValueError(
            f"{setting}={path}: of another architecture ({differing}); set the network's kind and sizes and "
            "data.num_classes to what these weights were trained with"
        )


def _teacher_weights(config: Config) -> None:
    if config.teacher.weights:
        _fits("teacher.weights", build.teacher_weights(config, run_root(config)), build.denoiser, config)


def _value_weights(config: Config) -> None:
    if path := build.value_weights(config):
        _fits("ten_step.value_weights", path, build.fresh_value, config)


def _inception_weights(config: Config) -> None:
    if path := config.evaluation.inception_weights:
        load_inception_weights(Path(path))


def _run_folder(config: Config) -> None:
    parent = next(p for p in (run_root(config), *run_root(config).parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{parent}: cannot write results here; choose another run.dir")


def _devices(config: Config) -> None:
    from .launch import uses_ray

    if config.workers.gpus and not uses_ray(config) and not torch.cuda.is_available():
        raise ValueError(f"workers.gpus={config.workers.gpus:g}, but this machine has no GPU; use workers.gpus=0")
    here = [{"CPU": os.cpu_count(), "GPU": torch.cuda.device_count()}]
    if uses_ray(config) and not os.environ.get("RAY_ADDRESS") and not room.fitting(config.workers, here):
        raise ValueError(room.refusal(config.workers, here))  # a Ray of our own would have just this machine


def cluster(config: Config, say: Callable[[str], None]) -> None:
    """For a run that is new on the cluster at RAY_ADDRESS: whether that has room for a job, or grows until it has.

    Raises ValueError, or JobsFailedError where the cluster cannot be reached.
    """
    if run_root(config).exists() or not uses_ray(config) or not os.environ.get("RAY_ADDRESS"):
        return
    from ..on_ray import resources
    from ..on_ray.environment import ClusterError, session

    try:
        with session(config.run.verbose):
            if not resources.room(config.workers):
                say(f"waiting for nodes, at most {config.workers.start_timeout:g} s (workers.start_timeout)")
            resources.require(config.workers)
    except resources.TooLargeError:
        raise
    except ClusterError as error:
        raise JobsFailedError(str(error)) from error


def _vectors(config: Config) -> None:
    if not config.density_ratio.vectors:
        return
    dim = read_pairs(config.density_ratio.vectors)[0].shape[1]
    sweep = Estimate.of(config)
    problems = [unbridgeable(kind.density_ratio, dim) for kind in (sweep.kinds if sweep else [config])]
    if found := next(filter(None, problems), None):
        raise ValueError(found)


def _budget(config: Config) -> None:
    within(config)


CHECKS: tuple[Callable[[Config], None], ...] = (
    _run_folder,
    _devices,
    _teacher_weights,
    _value_weights,
    _inception_weights,
    _shards,
    _vectors,
    _budget,
    sweep_preflight.disk,
)


def check(config: Config) -> None:
    """Raises ValueError with every problem found, one per line."""
    problems = []
    for look in (*CHECKS, *(sweep_preflight.CHECKS if config.sweep.space else ())):
        try:
            look(config)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))  # several look at the vectors
