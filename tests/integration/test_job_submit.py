"""python -m pytest tests/integration/test_job_submit.py"""

import os
import subprocess
from pathlib import Path

import processes
import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.ray]

JOB = """
from pathlib import Path
from nnce_dist.config.schema import Workers
from nnce_dist.on_ray.environment import session
import test_on_ray
with session():
    from nnce_dist.on_ray.sweep import run_trials
    from nnce_dist.on_ray.train import run_on_workers
    value = run_on_workers(test_on_ray.sum_of_ranks, {"scale": 1.0}, Workers(count=2), Path.cwd())
    print("sum over ranks:", value["total"])
    payloads = [{"name": "a", "number": 5}, {"name": "b", "number": 3}]
    for outcome in run_trials(test_on_ray.trial, payloads, Workers(), Path.cwd()):
        print("outcome:", outcome.name, (outcome.value or {}).get("square"), outcome.error)
"""


@pytest.fixture(scope="module")
def head():
    """A cluster, and the environment of somebody who submits jobs to it."""
    with processes.ray_head() as settings:
        yield settings


def submit(settings, directory, *command, timeout=300):
    """`ray job submit` as a person types it; the completed process with its output."""
    line = [*processes.RAY, "job", "submit", "--working-dir", str(directory), "--", *command]
    return subprocess.run(line, env=os.environ | settings, capture_output=True, text=True, timeout=timeout)


def test_a_job_trains_on_workers_and_sweeps(head, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    done = submit(head, tmp_path, "python", "job.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "sum over ranks: 3.0" in done.stdout
    assert "outcome: a 25 None" in done.stdout
    assert "outcome: b None RuntimeError: 3 is not for squaring" in done.stdout


def test_a_job_that_asks_for_too_much_fails_with_its_line(head, tmp_path):
    (tmp_path / "job.py").write_text(JOB.replace("Workers(count=2)", "Workers(count=3, start_timeout=2)"))
    done = submit(head, tmp_path, "python", "job.py")
    assert done.returncode == 1
    assert "asked for 3 x (1 CPUs, 0 GPUs), the cluster has 2 CPUs and 0 GPUs on 1 node(s)" in done.stdout


def test_the_pipeline_runs_as_a_job(head, tmp_path):
    line = ["python", "pipelines/imagenet64.py", "preset=smoke", f"run.dir={tmp_path}"]
    done = submit(head, REPOSITORY, *line, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "smoke" / "report.html").stat().st_size > 10_000
    for job in ("teacher", "ten_step/m1", "ten_step/m100", "one_step", "samplers/untuned"):
        assert (tmp_path / "smoke" / job / "result.json").exists(), job
