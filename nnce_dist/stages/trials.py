"""The jobs of a run: which trials the sweep holds, and their plain payloads."""

import dataclasses
import math
from pathlib import Path

from ..config.load import to_dict
from ..config.schema import Config

ZERO_ENERGY = "zero-energy"
HELD_BELOW = 0.99  # gamma*M/(M+1) differs from gamma by more than 1 % only under this value of M/(M+1)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One tuning run of the sweep."""

    name: str
    noise_magnitude: float
    held: bool = False  # gamma*(M+1)/M held fixed over M
    energy_weight: float | None = None  # None: that of the configuration

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


def sweep_trials(config: Config) -> list[Trial]:
    """Every trial of the ten-step sweep; without a list of magnitudes, the one of the objective."""
    sweep = config.sweep
    magnitudes = list(dict.fromkeys(sweep.noise_magnitudes or [config.objective.noise_magnitude]))
    if sweep.nwj and math.inf not in magnitudes:
        magnitudes.append(math.inf)
    trials = [Trial(label(m), m) for m in magnitudes]
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


def best(results: list[dict]) -> dict:
    """The trial with the lowest selection figure (measured on a draw that no reported figure sees).

    Controls do not compete: the one without energy, and the held variants.
    """
    names = [r for r in results if r["name"] != ZERO_ENERGY and not r["name"].endswith("-held")]
    return min(names, key=lambda r: r["selection"])
