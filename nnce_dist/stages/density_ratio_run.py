"""A run about a density ratio: its trials over M and seeds, its plan, the rows and curves of its report."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..config.schema import Config
from ..metrics.jsonl import training_records
from ..report.data import Curve, SamplerResult, describe_magnitude
from .folder import job_folder
from .launch import Launcher
from .packing import run_packed
from .trials import AUTO, Trial, payload, sweep_trials

STAGE = "density_ratio"
ENDS = {1.0: " (NCE)", float("inf"): " (NWJ)"}


def chosen(config: Config) -> bool:
    """Whether the run is about a density ratio; no other stage goes with that."""
    return config.run.stages == [STAGE]


def trials(config: Config) -> list[tuple[Trial, str, Config]]:
    """Every magnitude with every seed: the trial of the sweep, its name with the seed, its configuration."""
    return [
        (trial, f"{trial.name}-seed{seed}", _seeded(trial.configuration(config), seed))
        for trial in sweep_trials(config)
        if trial.energy_weight is None  # the control without energy is the ten-step sampler's
        for seed in seeds(config)
    ]


def seeds(config: Config) -> list[int]:
    """The seeds that every magnitude is trained with."""
    return config.sweep.seeds or [config.run.seed]


def _seeded(config: Config, seed: int) -> Config:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))


def run_stage(config: Config, root: Path, jobs: Launcher, say: Callable[[str], None]) -> list[dict]:
    """Results of all trials."""
    payloads = [payload(settings, root, STAGE, name) for _, name, settings in trials(config)]
    results = run_packed(jobs, payloads, config.sweep.per_process)
    say(_verdict(best_trial(config, results), by_trial(config, results)))
    return results


def _verdict(best: Trial | None, done: dict[Trial, list[dict]]) -> str:
    """Which M the run has come to."""
    if best is None:
        return "best noise magnitude: none, because every trial that competes failed or diverged"
    m = best.reached(done[best])
    if best.name == AUTO:
        return f"noise magnitude: {AUTO}, {m:g} at the end of training"
    return f"best noise magnitude: {m:g} (chosen on vectors that no reported figure sees)"


def best_trial(config: Config, results: list[dict]) -> Trial | None:
    """The magnitude that most seeds finished with; of these the one with the lowest mean selection figure over them.

    None where no seed finished with any: those that failed or diverged do not count.
    """
    ranks = {}
    for trial, done in by_trial(config, results).items():
        finite = [one["selection"] for one in done if math.isfinite(one["selection"])]
        if finite and not trial.held:
            ranks[trial] = -len(finite), statistics.fmean(finite)
    return min(ranks, key=ranks.get, default=None)


def by_trial(config: Config, results: list[dict]) -> dict[Trial, list[dict]]:
    """The results of each magnitude that did not fail, diverged ones too, in the order of the seeds."""
    done, found = {result["name"]: result for result in results if "error" not in result}, {}
    for trial, name, _ in trials(config):
        found.setdefault(trial, []).extend([done[name]] if name in done else [])
    return found


def plan(config: Config) -> list[tuple[str, str]]:
    """What will happen, as (part, description) rows."""
    s, names = config.density_ratio, [name for _, name, _ in trials(config)]
    sweep = f"{len(names)} trials ({', '.join(names)}), {s.training.samples:,} samples each, batch {s.training.batch}"
    rows = [
        ("data", f"{s.vectors}, {s.holdout:.0%} held out" if s.vectors else _family(config)),
        ("network", _network(config)),
    ]
    return rows if config.sweep.space else [*rows, (STAGE, sweep)]


def _told(config: Config, name: str) -> str:
    """A setting, or what it is swept over."""
    value = getattr(config.density_ratio, name)
    told = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else f"{value:,}"
    return config.sweep.space.get(f"{STAGE}.{name}", told)


def _network(config: Config) -> str:
    told = partial(_told, config)
    layers = f", {told('num_layers')} hidden layers of {told('width')}" if "mlp" in told("network") else ""
    bridges = f", {told('num_bridges')} bridges, {told('waymarks')} waymarks" if told("num_bridges") != "1" else ""
    return f"{told('network')}{layers}{bridges}"


def _family(config: Config) -> str:
    told = partial(_told, config)
    number = "fresh at every step" if told("num_samples") == "0" else f"{told('num_samples')} a side"
    return (
        f"{told('family')} against N(0, I) in {told('dim')} dimensions, KL {told('kl')} nats, {number}; "
        f"{told('test_samples')} to measure"
    )


def contents(config: Config, root: Path, results: list[dict]) -> tuple[list[SamplerResult], list[Curve]]:
    """The report's rows, one for each magnitude with a value per seed, and the curves of the first seed."""
    best, found = best_trial(config, results), by_trial(config, results)
    rows = [_row(trial, done, len(seeds(config)), trial == best) for trial, done in found.items()]
    first = [(trial, name) for trial, name, settings in trials(config) if settings.run.seed == seeds(config)[0]]
    records = {trial: training_records(job_folder(root, STAGE, name)) for trial, name in first}
    curves = [
        Curve(trial.name, STAGE, seen, trial.reached(found[trial]), trial.held) for trial, seen in records.items()
    ]
    return rows, [curve for curve in curves if curve.records]


def _row(trial: Trial, done: list[dict], wanted: int, best: bool) -> SamplerResult:
    m = trial.reached(done)
    given = f"{describe_magnitude(m)}{ENDS.get(m, '')}"
    title = f"M = {AUTO if trial.name == AUTO else given}{', held' * trial.held}"
    measured = [result["figures"] for result in done if result["figures"]]
    title += f", {len(measured)} of {wanted} seeds" if len(measured) < wanted else ""
    figures = {name: [one[name][0] for one in measured] for name in (measured[0] if measured else {})}
    note = "" if measured else "diverged" if done else "failed"
    return SamplerResult(*(title, "tuned", figures), noise_magnitude=m, held=trial.held, chosen=best, note=note)
