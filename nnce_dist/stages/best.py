"""best.yaml: the best trial's configuration, as a preset that runs as it is."""

import dataclasses
from pathlib import Path

from ..config.load import to_yaml, with_settings
from ..config.schema import Config, Sweep, Teacher
from ..config.sweep_checks import trials_stage
from ..report.trials import SEED, SweepData, TrialRow
from . import density_ratio_run
from .build import teacher_weights
from .trials import AUTO

FILE = "best.yaml"
LONGEST_NAME = 63  # of a run
ENDING = "-best"
SEARCH = ("space", "strategy", "trials", "metric", "mode", "interval", "reduction", "batch")  # of a space alone
CHANGED = "# Its settings changed in training (sweep.strategy=pbt); these are the last ones, and hold from the start.\n"


def best_yaml(config: Config, root: Path, sweep: SweepData) -> str:
    """The file, with a comment about where it comes from."""
    names = ", ".join(trial.name for trial in sweep.best)
    told = f"{sweep.best[0].metric} {', '.join(f'{trial.value:g}' for trial in sweep.best)}"
    return (
        f"# The best of {len(sweep.trials)} trials of run {config.run.name}: {names} ({told}).\n"
        f"{CHANGED if sweep.strategy == 'pbt' else ''}"
        f"# Start it: python pipelines/NAME.py preset={root / FILE}\n"
        f"{to_yaml(best_configuration(config, root, sweep.best))}"
    )


def best_configuration(config: Config, root: Path, best: list[TrialRow]) -> Config:
    """The run's configuration with the settings of its best trials (one for each seed), and these trials alone."""
    repeated = density_ratio_run.chosen(config)  # which has a trial for each seed; others have the best seed
    settings = {key: value for key, value in best[0].settings.items() if value != AUTO}
    if repeated:
        settings.pop(SEED, None)
    chosen = with_settings(config, settings)
    sweep = dataclasses.replace(
        chosen.sweep,
        noise_magnitudes=[] if chosen.objective.schedule.kind == AUTO else [chosen.objective.noise_magnitude],
        **{"nwj": False, "held": False, "zero_energy": False},
        **{name: getattr(Sweep(), name) for name in SEARCH},
        seeds=_seeds(config, best) if repeated else [],
    )
    name = f"{config.run.name[: LONGEST_NAME - len(ENDING)]}{ENDING}"
    run = dataclasses.replace(chosen.run, name=name, allow_drift=[])
    return dataclasses.replace(chosen, sweep=sweep, run=run, teacher=_teacher(chosen, root))


def _seeds(config: Config, best: list[TrialRow]) -> list[int]:
    return sorted(trial.settings[SEED] for trial in best) if SEED in best[0].settings else config.sweep.seeds


def _teacher(config: Config, root: Path) -> Teacher:
    """The teacher that the trials began with, where the run trained one: its weights are taken from there."""
    made = teacher_weights(config, root)
    if config.teacher.weights or trials_stage(config) == "teacher" or not made.exists():
        return config.teacher
    return dataclasses.replace(config.teacher, weights=str(made))
