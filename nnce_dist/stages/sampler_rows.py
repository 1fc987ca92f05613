"""The rows and curves of a report about samplers of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

from ..config.schema import Config
from ..metrics.jsonl import training_records
from ..report.data import Curve, SamplerResult, describe_magnitude
from .folder import job_folder
from .trials import AUTO, ZERO_ENERGY, Trial, best, sweep_trials


def _evaluations(config: Config) -> dict[str, int]:
    """Network evaluations per image of each untrained sampler; Heun's last step has one."""
    steps = config.ten_step.num_steps
    heun = 2 * max(steps // 2, 2) - 1
    return {"teacher": 2 * config.teacher.steps - 1, "untuned": steps, "euler": steps, "heun": heun}


def _untrained(config: Config) -> dict[str, tuple[str, str]]:
    """Title and group of each row that needs no training."""
    steps = config.ten_step.num_steps
    return {
        "data": ("Held-out data", "data"),
        "teacher": (f"Teacher, Heun {config.teacher.steps} steps", "teacher"),
        "untuned": (f"Untuned {steps}-step", "untuned"),
        "euler": (f"Euler, {steps} steps", "baseline"),
        "heun": (f"Heun, {max(steps // 2, 2)} steps", "baseline"),
    }


def _tuned_title(trial: Trial, steps: int) -> str:
    if trial.energy_weight == 0:
        return f"{steps}-step, zero energy"
    if trial.name == AUTO:
        return f"{steps}-step, M = auto"
    kinds = {1.0: ", NCE", math.inf: ", NWJ"}
    kind = ", \N{GREEK SMALL LETTER GAMMA} held" if trial.held else kinds.get(trial.noise_magnitude, "")
    return f"{steps}-step, M = {describe_magnitude(trial.noise_magnitude)}{kind}"


def _drawn(trial: dict, steps: int) -> tuple[str, str, int]:
    """Title, group and cost of a trial of a space."""
    one_step = trial["stage"] == "one_step"
    return (
        (f"One-step, {trial['name']}", "one_step", 1)
        if one_step
        else (f"{steps}-step, {trial['name']}", "tuned", steps)
    )


def rows(config: Config, root: Path, results: list[dict], drawn: Sequence[dict] = ()) -> list[SamplerResult]:
    """The table's rows, those that are comparable beside each other; `drawn` are trials of a space that have one."""
    by_name = {one["name"]: one for one in (*results, *drawn) if "figures" in one or "error" in one}
    chosen = best([result for result in results if result["stage"] == "ten_step"])
    evaluations, steps = _evaluations(config), config.ten_step.num_steps

    def row(name: str, title: str, group: str, evaluations: int | None, **more) -> SamplerResult:
        result = by_name[name]
        if "error" in result:
            return SamplerResult(title, group, {}, evaluations, note="failed", **more)
        grid = job_folder(root, result["stage"], name) / "samples.png"  # none where training was stopped: it diverged
        more |= {"grid": grid if grid.exists() else None, "note": result.get("note", "")}
        picked = result is chosen or result in drawn
        return SamplerResult(title, group, result["figures"], evaluations, chosen=picked, **more)

    table = [
        row(name, title, group, evaluations.get(name))
        for name, (title, group) in _untrained(config).items()
        if name in by_name
    ]
    for trial in sweep_trials(config):
        if trial.name in by_name:
            control = trial.energy_weight == 0
            magnitude = None if control else trial.reached([by_name[trial.name]])
            group = "control" if control else "tuned"
            title = _tuned_title(trial, steps)
            table.append(row(trial.name, title, group, steps, noise_magnitude=magnitude, held=trial.held))
    for trial in drawn:
        if trial["name"] in by_name:
            table.append(row(trial["name"], *_drawn(trial, steps), noise_magnitude=trial.get("noise_magnitude")))
    if "one_step" in by_name:
        table.append(row("one_step", "One-step", "one_step", 1))
    order = ("data", "teacher", "untuned", "baseline", "control", "tuned", "one_step")
    return sorted(table, key=lambda r: (order.index(r.group), r.held))


def curves(root: Path, results: list[dict]) -> list[Curve]:
    """Training curves of every job that trained."""
    found = []
    for result in results:
        if records := training_records(job_folder(root, result["stage"], result["name"])):
            magnitude = None if result["name"] == ZERO_ENERGY else result.get("noise_magnitude")
            held = result["name"].endswith("-held")
            found.append(Curve(result["name"], result["stage"], records, magnitude, held))
    return found
