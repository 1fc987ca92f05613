"""From the results of a run's jobs to its report."""

import json
import math
from pathlib import Path

from rich.console import Console

from ..config.load import to_yaml
from ..config.schema import Config
from ..metrics.jsonl import FILE_NAME, read
from ..report.data import Curve, ReportData, SamplerResult, describe_magnitude
from ..report.html import write_report
from ..report.table import terminal_table
from .folder import job_folder
from .trials import ZERO_ENERGY, Trial, best, sweep_trials


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
    kinds = {1.0: ", NCE", math.inf: ", NWJ"}
    kind = ", \N{GREEK SMALL LETTER GAMMA} held" if trial.held else kinds.get(trial.noise_magnitude, "")
    return f"{steps}-step, M = {describe_magnitude(trial.noise_magnitude)}{kind}"


def rows(config: Config, root: Path, results: list[dict]) -> list[SamplerResult]:
    """The table's rows, those that are comparable beside each other."""
    by_name = {result["name"]: result for result in results if "figures" in result}
    swept = [result for result in results if result["stage"] == "ten_step"]
    chosen = best(swept)["name"] if swept else None
    evaluations, steps = _evaluations(config), config.ten_step.num_steps

    def row(name: str, title: str, group: str, **more) -> SamplerResult:
        result = by_name[name]
        grid = job_folder(root, result["stage"], name) / "samples.png"
        note = result.get("note", "")
        return SamplerResult(title, group, result["figures"], grid=grid, note=note, chosen=name == chosen, **more)

    table = [
        row(name, title, group, evaluations=evaluations.get(name))
        for name, (title, group) in _untrained(config).items()
        if name in by_name
    ]
    for trial in sweep_trials(config):
        if trial.name in by_name:
            control = trial.energy_weight == 0
            magnitude = None if control else trial.noise_magnitude
            group = "control" if control else "tuned"
            title = _tuned_title(trial, steps)
            table.append(row(trial.name, title, group, evaluations=steps, noise_magnitude=magnitude, held=trial.held))
    if "one_step" in by_name:
        table.append(row("one_step", "One-step", "one_step", evaluations=1))
    order = ("data", "teacher", "untuned", "baseline", "control", "tuned", "one_step")
    return sorted(table, key=lambda r: (order.index(r.group), r.held))


def curves(root: Path, results: list[dict]) -> list[Curve]:
    """Training curves of every job that trained."""
    found = []
    for result in results:
        path = job_folder(root, result["stage"], result["name"]) / FILE_NAME
        records = [record for record in read(path) if "samples_seen" in record] if path.exists() else []
        if records:
            magnitude = None if result["name"] == ZERO_ENERGY else result.get("noise_magnitude")
            held = result["name"].endswith("-held")
            found.append(Curve(result["name"], result["stage"], records, magnitude, held))
    return found


def write(config: Config, root: Path, results: list[dict], seconds: float, console: Console) -> Path:
    """Writes report.html and ends the terminal's output with the table and the report's path."""
    manifest = json.loads((root / "manifest.json").read_text())
    spent = {f"{result['stage']}/{result['name']}": result["seconds"] for result in results}
    manifest |= {"seed": config.run.seed, "total_seconds": seconds, "stage_seconds": spent}
    data = ReportData(config.run.name, rows(config, root, results), curves(root, results), manifest, to_yaml(config))
    page = write_report(data, root)
    console.print(terminal_table(data.rows))
    console.print(f"report: {page}", soft_wrap=True)
    return page
