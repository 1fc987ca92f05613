"""A run's folder and the folders of its jobs.

    <run.dir>/<run.name>/{config.yaml, manifest.json, report.html, figures/,
                          teacher/, ten_step/<trial>/, one_step/, samplers/<name>/}

A job's folder holds metrics.jsonl, checkpoints/, samples.png and, once the job is done, result.json and weights.
"""

import json
from pathlib import Path

from ..config.load import differences, read_yaml, to_dict, to_yaml
from ..config.schema import Config
from ..training.checkpoint import write_json

MAY_DRIFT = ("run.verbose", "run.dir", "metrics.", "workers.", "sweep.concurrent")  # do not change what is computed
RESULT = "result.json"


def run_root(config: Config) -> Path:
    """The folder of a run, absolute: Ray's workers have another working directory."""
    return (Path(config.run.dir) / config.run.name).absolute()


def claim(config: Config) -> Path:
    """Makes the run's folder, or goes on with it if it holds the same configuration.

    Raises ValueError listing the settings that differ.
    """
    root = run_root(config)
    path = root / "config.yaml"
    if path.exists():
        changed = [
            f"{key}: {old!r} there, {new!r} now"
            for key, old, new in differences(read_yaml(path), to_dict(config))
            if not key.startswith(MAY_DRIFT)
        ]
        if changed:
            raise ValueError(
                f"{root} was started with other settings ({'; '.join(changed[:6])}"
                f"{f'; and {len(changed) - 6} more' if len(changed) > 6 else ''}); choose another run.name"
            )
    else:
        root.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(to_yaml(config))
        temporary.replace(path)
    return root


def job_folder(root: Path, stage: str, name: str) -> Path:
    """The folder of one job; a stage of one job has no folder per trial."""
    return root / stage if name == stage else root / stage / name


def read_result(folder: Path) -> dict | None:
    """A finished job's result; None while it is not done."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def write_result(folder: Path, result: dict) -> None:
    """Marks a job as done."""
    write_json(folder / RESULT, result)
