"""The job from start to end: plan, data, teacher, sweep, one-step, evaluation, report."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from ..config.schema import Config
from ..metrics.monitor import Monitor
from . import inputs, report
from .draws import UNTRAINED
from .folder import claim
from .launch import Launcher, launcher
from .manifest import write_manifest
from .trials import best, payload, sweep_payloads

Say = Callable[[str], None]


def run(config: Config, command: list[str], console: Console) -> Path:
    """Runs every stage of the configuration and returns the report's path. What is done already is not done again."""
    start, say = time.perf_counter(), partial(console.print, soft_wrap=True)
    root = claim(config)
    write_manifest(root, command)
    with Monitor(root, config.metrics.host, config.metrics.port) as monitor:
        say(f"metrics: {monitor.url}")
        prepare(config, say)
        with launcher(config, root) as jobs:
            results = run_stages(config, root, jobs, say)
    return report.write(config, root, results, time.perf_counter() - start, console)


def prepare(config: Config, say: Say) -> None:
    """Data packed and indexed, reference statistics made: once, before the jobs that share them."""
    data = inputs.open_train(config)
    inputs.open_val(config)
    classes = int((data.label_counts > 0).sum())
    say(f"data: {len(data):,} training images in {classes} classes, digest {data.digest[:12]}")
    features = inputs.feature_network(config, "cpu")
    inputs.reference(config, data, features)


def run_stages(config: Config, root: Path, jobs: Launcher, say: Say) -> list[dict]:
    """Results of all jobs."""
    stages, results = config.run.stages, []
    if "teacher" in stages and not config.teacher.weights:
        results += jobs.run([payload(config, root, "teacher", "teacher")])
    beside = [payload(config, root, "samplers", name) for name in ("data", *UNTRAINED)]
    if "ten_step" in stages:
        swept = jobs.run(sweep_payloads(config, root))
        chosen = best(swept)
        say(f"best noise magnitude: {chosen['name']} (selection figure {chosen['selection']:.2f})")
        results += swept
        config = with_magnitude(config, chosen["noise_magnitude"])
    if "one_step" in stages:
        beside.insert(0, payload(config, root, "one_step", "one_step"))
    return results + jobs.run(beside)


def with_magnitude(config: Config, noise_magnitude: float) -> Config:
    """The one-step critic at the sweep's best M, where the configuration says so."""
    if not config.one_step.magnitude_from_sweep:
        return config
    one_step = dataclasses.replace(config.one_step, critic_noise_magnitude=noise_magnitude)
    return dataclasses.replace(config, one_step=one_step)
