"""The jobs of a run: which trials the sweep holds, and their plain payloads."""

import dataclasses
import math
import statistics
from functools import reduce
from pathlib import Path

from ..config.load import to_dict
from ..config.schema import Config
from ..config.sweep_checks import SEED, space, trials_stage

ZERO_ENERGY = "zero-energy"
AUTO = "auto"
SHORT = {"noise_magnitude": "M"}
HELD_BELOW = 0.99  # gamma*M/(M+1) differs from gamma by more than 1 % only under this value of M/(M+1)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One tuning run of the sweep."""

    name: str
    noise_magnitude: float
    held: bool = False  # gamma*(M+1)/M held fixed over M
    energy_weight: float | None = None  # None: that of the configuration

    def reached(self, results: list[dict]) -> float:
        """M at the end: the trial's own, or three digits of what training chose, in the mean over finished results."""
        chosen = [result["noise_magnitude"] for result in results if "noise_magnitude" in result]
        return float(f"{statistics.fmean(chosen):.3g}") if self.name == AUTO and chosen else self.noise_magnitude

    def configuration(self, config: Config) -> Config:
        """The run's configuration with this trial's settings."""
        objective = dataclasses.replace(
            config.objective,
            noise_magnitude=self.noise_magnitude,
            hold_regularisation=self.held or config.objective.hold_regularisation,
        )
        weight = config.ten_step.energy_weight if self.energy_weight is None else self.energy_weight
        ten_step = dataclasses.replace(config.ten_step, energy_weight=weight)
        return dataclasses.replace(config, objective=objective, ten_step=ten_step)


def label(noise_magnitude: float) -> str:
    """M as a trial's name: m1, m100, minf."""
    return f"m{noise_magnitude:g}".replace("+", "").replace(".", "p")


def swept_settings(config: Config, stage: str) -> str:
    """The settings of a trial that others of its space have other values of, for people; of other jobs nothing."""
    keys = list(space(config)) if config.sweep.space and stage == trials_stage(config) else []
    names = [key.rpartition(".")[2] for key in keys]
    short = [SHORT.get(name, name) if names.count(name) == 1 else key for name, key in zip(names, keys, strict=True)]
    values = (reduce(getattr, key.split("."), config) for key in keys)
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in zip(short, values, strict=True)
    )


def constants(config: Config) -> dict[str, float]:
    """What the records of a trial's training all say: its M, unless training chooses it."""
    return {} if config.objective.schedule.kind == AUTO else {"noise_magnitude": config.objective.noise_magnitude}


def sweep_trials(config: Config) -> list[Trial]:
    """Every trial of the ten-step sweep; without a list of magnitudes, the one of the objective."""
    sweep = config.sweep
    magnitudes = list(dict.fromkeys(sweep.noise_magnitudes or [config.objective.noise_magnitude]))
    if sweep.nwj and math.inf not in magnitudes:
        magnitudes.append(math.inf)
    trials = [Trial(AUTO if config.objective.schedule.kind == AUTO else label(m), m) for m in magnitudes]
    if sweep.held:
        trials += [Trial(f"{label(m)}-held", m, held=True) for m in magnitudes if m / (m + 1) < HELD_BELOW]
    if sweep.zero_energy:
        trials.append(Trial(ZERO_ENERGY, config.objective.noise_magnitude, energy_weight=0.0))
    return trials


def payload(config: Config, root: Path, stage: str, name: str) -> dict:
    """What `jobs.run_job` takes."""
    return {"stage": stage, "name": name, "config": to_dict(config), "root": str(root)}


def sweep_payloads(config: Config, root: Path) -> list[dict]:
    """One payload per trial of the sweep."""
    return [payload(t.configuration(config), root, "ten_step", t.name) for t in sweep_trials(config)]


def best(results: list[dict], mode: str = "min") -> dict | None:
    """The trial whose settings most seeds finished with, of these with the best mean of the sweep's metric over them.

    Of its seeds it is the best one. The metric by itself is a figure that no reported one saw. Controls do not compete:
    the one without energy, and the held variants; nor do trials that failed, diverged or were stopped early: settings
    that blow up with some seeds would else be judged by the lucky ones. None when there is no other.
    """

    def score(result: dict) -> float:
        return (1 if mode == "min" else -1) * (result["value"] if "value" in result else result["selection"])

    groups: dict[tuple, list[dict]] = {}
    for result in results:
        control = result["name"] == ZERO_ENERGY or result["name"].endswith("-held")
        if not control and not {"error", "stopped"} & result.keys() and math.isfinite(score(result)):
            groups.setdefault(_but_seed(result), []).append(result)
    chosen = min(groups.values(), key=lambda group: (-len(group), statistics.fmean(map(score, group))), default=[])
    return min(chosen, key=score, default=None)


def _but_seed(result: dict) -> tuple:
    """What trials of a space share that differ in their seed alone; any other result is like no other."""
    settings = result.get("point", {"name": result["name"]})
    return tuple((key, str(value)) for key, value in settings.items() if key != SEED)
