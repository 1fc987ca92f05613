"""The job from start to end: plan, data, teacher, sweep, one-step, evaluation, report."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from ..config.schema import Config
from ..config.sweep_checks import swept_stage
from ..data.bad_samples import read_skipped
from ..metrics.jsonl import FILE_NAME, read
from ..metrics.monitor import Monitor
from . import density_ratio_run, inputs, preflight, report, search
from .budget import within
from .draws import UNTRAINED
from .folder import claim, errors, job_name, run_root
from .job import outcome_of
from .jobs import JobsFailedError
from .launch import Launcher, launcher
from .lease import lease
from .manifest import write_manifest
from .mirror import RunMirror, run_mirror
from .packing import run_packed
from .trials import best, label, payload, sweep_payloads

Say = Callable[[str], None]


def run(config: Config, command: list[str], console: Console) -> Path:
    """Runs every stage of the configuration and returns the report's path. What is done already is not done again.

    Raises JobsFailedError naming the jobs that failed, once the others are done and the report is written.
    """
    start, say = time.perf_counter(), partial(console.print, soft_wrap=True)
    preflight.cluster(config, say)
    root, mirror = run_root(config), run_mirror(config)
    with lease(root, mirror, say) as epoch:
        write_manifest(root, command, claim(config, say))
        if mirror:
            mirror.push(root)
        where, metric = (config.metrics.host, config.metrics.port), config.sweep.metric
        terminal = console if console.is_terminal else None  # what is said goes above the table, on one console only
        with Monitor(root, *where, terminal, metric) as monitor:
            say(f"metrics: {monitor.url or 'in the files alone'}")
            prepare(config, say)
            budgeted = within(config)
            with launcher(budgeted, root, epoch) as jobs:
                results = run_stages(budgeted, root, mirror, jobs, say)
        tell_skipped(config, say)
        tell_diverged(results, say)
        page = report.write(config, root, results, time.perf_counter() - start, console)
        if mirror:
            mirror.complete()
    require_success(results)
    return page


def prepare(config: Config, say: Say) -> None:
    """Data packed and indexed, reference statistics made: once, before the jobs that share them."""
    if density_ratio_run.chosen(config):
        return  # vectors are read or drawn by each job
    data = inputs.open_train(config, say)
    inputs.open_val(config, say)
    classes = int((data.label_counts > 0).sum())
    say(f"data: {len(data):,} training images in {classes} classes, digest {data.digest[:12]}")
    features = inputs.feature_network(config, "cpu")
    inputs.reference(config, data, features)


def tell_skipped(config: Config, say: Say) -> None:
    """One line about the samples that `data.on_error` left out, if there are any."""
    path = inputs.skipped_list(config)
    if skipped := read_skipped(path):
        total = sum(one["samples"] for one in skipped)
        say(
            f"skipped: {total:,} samples; others took their place; all are in {path}; the first: {skipped[0]['reason']}"
        )


def tell_diverged(results: list[dict], say: Say) -> None:
    """One line about each job whose sampler diverged: no failure, it would only diverge again."""
    for result in results:
        if "reason" in result:
            say(f"{job_name(result)}: {outcome_of(result)}")


def run_stages(config: Config, root: Path, mirror: RunMirror | None, jobs: Launcher, say: Say) -> list[dict]:
    """Results of all jobs."""
    swept = swept_stage(config) if config.sweep.space else None
    sweep = partial(search.run, config, root, jobs, mirror, say)
    if swept in ("teacher", "density_ratio"):
        return sweep()
    if density_ratio_run.chosen(config):
        return density_ratio_run.run_stage(config, root, jobs, say)
    stages, results = config.run.stages, []
    if "teacher" in stages and not config.teacher.weights:
        results += jobs.run([payload(config, root, "teacher", "teacher")])
        require_success(results)  # everything else begins with its weights
    beside = [payload(config, root, "samplers", name) for name in ("data", *UNTRAINED)]
    if "ten_step" in stages:
        packed = partial(run_packed, jobs, sweep_payloads(config, root), config.sweep.per_process)
        tuned, mode = (sweep(), config.sweep.mode) if swept == "ten_step" else (packed(), "min")
        config, results = with_magnitude(config, best(tuned, mode), say), results + tuned
    if swept == "one_step":
        results += sweep()
    elif "one_step" in config.run.stages:
        _set_aside_with_copy(config, root, mirror, say)
        beside.insert(0, payload(config, root, "one_step", "one_step"))
    return results + jobs.run(beside)


def _set_aside_with_copy(config: Config, root: Path, mirror: RunMirror | None, say: Say) -> None:
    aside = set_aside(root / "one_step", config.one_step.critic_noise_magnitude, say)
    if aside and mirror:
        mirror.forget(root / "one_step")


def with_magnitude(config: Config, chosen: dict | None, say: Say) -> Config:
    """The one-step critic at the best M, where the configuration says so; no one-step generator if none was found."""
    if chosen and not config.sweep.space:
        say(f"best noise magnitude: {chosen['name']} (selection figure {chosen['selection']:.2f})")
    if not config.one_step.magnitude_from_sweep:
        return config
    if not chosen:
        say("one-step generator: left out, because it takes the best noise magnitude and no trial has one")
        stages = [stage for stage in config.run.stages if stage != "one_step"]
        return dataclasses.replace(config, run=dataclasses.replace(config.run, stages=stages))
    one_step = dataclasses.replace(config.one_step, critic_noise_magnitude=chosen["noise_magnitude"])
    return dataclasses.replace(config, one_step=one_step)


def set_aside(folder: Path, noise_magnitude: float, say: Say) -> bool:
    """Renames a generator's folder if it was made at another M: the best of fewer trials, when others had failed."""
    records = read(folder / FILE_NAME) if (folder / FILE_NAME).exists() else []
    made_at = {record["noise_magnitude"] for record in records if "noise_magnitude" in record}
    if made_at <= {noise_magnitude}:
        return False
    aside = folder.with_name(f"{folder.name}-{label(made_at.pop())}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    say(f"one-step generator: made anew at the best noise magnitude; the one before is in {aside}")
    return True


def require_success(results: list[dict]) -> None:
    """Raises JobsFailedError with a line per failed job."""
    if failed := errors(results):
        raise JobsFailedError("\n".join(f"{job}: {line}" for job, line in failed.items()))
