"""The plan of a run, shown before anything starts: devices, stages, samples, network sizes, where results go."""

import os

import torch
from rich.console import Console
from rich.table import Table

from ..config.schema import Config
from ..config.sweep_checks import swept_stage
from . import build, density_ratio_run, sweep_plan
from .estimate import Estimate
from .folder import run_root
from .launch import uses_ray
from .manifest import hardware
from .trials import sweep_trials


def million_parameters(network: torch.nn.Module) -> str:
    """A network's size for people."""
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:,.2f} M parameters"


def _networks(config: Config) -> str:
    with torch.device("meta"):
        denoiser, value = build.denoiser(config), build.fresh_value(config)
    return f"{config.network.kind} {million_parameters(denoiser)}; energy {million_parameters(value)}"


def _data(config: Config) -> str:
    data = config.data
    if data.train:
        return f"{data.train}, held out {data.val}"
    return f"{data.made.train:,} + {data.made.val:,} pictures drawn here (8 classes of shapes, seed {data.made.seed})"


def _teacher(config: Config) -> str:
    if config.teacher.weights:
        return f"weights: {config.teacher.weights}"
    training = config.teacher.training
    return f"trained for {training.samples:,} samples, batch {training.batch}"


def _ten_step(config: Config) -> str:
    training, names = config.ten_step.training, [trial.name for trial in sweep_trials(config)]
    return f"{len(names)} trials ({', '.join(names)}), {training.samples:,} samples each, batch {training.batch}"


def _one_step(config: Config) -> str:
    training, one_step = config.one_step.training, config.one_step
    magnitude = "the sweep's best M" if one_step.magnitude_from_sweep else f"M={one_step.critic_noise_magnitude:g}"
    return f"{training.samples:,} samples, batch {training.batch}, critic {one_step.critic} at {magnitude}"


def _workers(config: Config) -> str:
    w = config.workers
    where = "Ray" if uses_ray(config) else "this process"
    cluster = f" at {os.environ['RAY_ADDRESS']}" if uses_ray(config) and os.environ.get("RAY_ADDRESS") else ""
    return f"{where}{cluster}; {w.count} worker(s) a job with {w.cpus:g} CPU, {w.gpus:g} GPU, {w.precision}"


STAGES = {"teacher": _teacher, "ten_step": _ten_step, "one_step": _one_step}


def plan(config: Config, estimated: bool = False) -> list[tuple[str, str]]:
    """What will happen, as (part, description) rows; `estimated`, and for a space, with what the sweep will take.

    Raises ValueError for weights of another architecture.
    """
    where = [("machine", hardware()), ("workers", _workers(config))]
    what = density_ratio_run.plan(config) if density_ratio_run.chosen(config) else _samplers(config)
    sweep = Estimate.of(config) if estimated or config.sweep.space else None
    return [*where, *what, *(sweep_plan.rows(sweep) if sweep else ()), ("results", str(run_root(config)))]


def _samplers(config: Config) -> list[tuple[str, str]]:
    e, swept = config.evaluation, swept_stage(config) if config.sweep.space else None
    beside = [stage for stage in config.run.stages if "teacher" != swept != stage]  # a swept teacher is all there is
    return [
        ("data", _data(config)),
        ("networks", _networks(config)),
        *((stage, STAGES[stage](config)) for stage in beside),
        ("evaluation", f"{e.draws} draws of {e.num_samples:,} images per sampler"),
    ]


def show(config: Config, console: Console, estimated: bool = False) -> None:
    """Prints the plan (see `plan`)."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in plan(config, estimated):
        table.add_row(*row)
    console.print(table)
