"""python -m pytest tests/integration/test_sweep_end.py

What a sweep leaves at its end, used as a person uses it, in processes of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*words: str | Path) -> subprocess.CompletedProcess:
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, timeout=300)


def pipeline(name: str, *words: str) -> subprocess.CompletedProcess:
    return run(f"pipelines/{name}.py", "workers.runtime=local", *words)


def figures(root: Path, job: str) -> dict:
    return json.loads((root / job / "result.json").read_text())["figures"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), [("imagenet64", "smoke"), ("density_ratio", "density-ratio-smoke")])
def test_the_best_configuration_runs_as_it_is_to_the_figures_that_it_had_in_the_sweep(tmp_path, name, preset):
    first = pipeline(name, f"preset={preset}", f"run.dir={tmp_path}")
    assert first.returncode == 0, first.stderr
    root = tmp_path / preset
    table = pandas.read_csv(root / "sweep.csv", index_col="name")
    alone = pipeline(name, f"preset={root}/best.yaml")
    assert alone.returncode == 0, alone.stderr
    again = pandas.read_csv(tmp_path / f"{preset}-best" / "sweep.csv", index_col="name")
    assert 0 < len(again) < len(table)
    columns = [column for column in table if "@" in column or column in ("selection", "objective.noise_magnitude")]
    pandas.testing.assert_frame_equal(again[columns], table.loc[again.index, columns])
    for trial, stage in again["stage"].items():
        assert figures(tmp_path / f"{preset}-best", f"{stage}/{trial}") == figures(root, f"{stage}/{trial}")
