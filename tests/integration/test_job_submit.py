"""python -m pytest tests/integration/test_job_submit.py"""

import json
import re
import shutil
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
    from nnce_dist.on_ray.train import run_on_workers
    value = run_on_workers(test_on_ray.sum_of_ranks, {"scale": 1.0}, Workers(count=2), Path.cwd())
    print("sum over ranks:", value["total"])
    payloads = [{"name": "a", "number": 5}, {"name": "b", "number": 3}]
    for outcome in test_on_ray.run_trials(test_on_ray.trial, payloads, Workers(), Path.cwd()):
        print("outcome:", outcome.name, (outcome.value or {}).get("square"), outcome.error)
"""


@pytest.fixture(scope="module")
def head():
    """A cluster, and the environment of somebody who submits jobs to it."""
    with processes.ray_cluster(num_cpus=2) as cluster:
        yield cluster.job


def ray_job(settings, *words, timeout=300):
    """`ray job ...` as a person types it; the completed process with its output."""
    line = [*processes.RAY, "job", *words]
    return subprocess.run(line, env=processes.outside() | settings, capture_output=True, text=True, timeout=timeout)


def submit(settings, directory, *command, timeout=300):
    """`ray job submit` and what came of the job."""
    return ray_job(settings, "submit", "--working-dir", str(directory), "--", *command, timeout=timeout)


def test_a_job_trains_on_workers_and_sweeps(head, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    done = submit(head, tmp_path, "python", "job.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "sum over ranks: 3.0" in done.stdout
    assert "outcome: a 25 None" in done.stdout
    assert "outcome: b None RuntimeError: 3 is not for squaring" in done.stdout


def test_workers_larger_than_every_node_are_bad_input(head, tmp_path):
    """The settings are to be changed: exit code 2, and no trial has begun."""
    command = ["python", str(REPOSITORY / "pipelines/density_ratio.py"), "preset=density-ratio-smoke"]
    done = submit(head, tmp_path, *command, f"run.dir={tmp_path}/runs", "workers.cpus=64", "workers.start_timeout=1")
    assert "exit code 2" in done.stdout, done.stdout[-3000:]
    assert "asked for 1 x (64 CPUs, 0 GPUs), the cluster has 2 CPUs and 0 GPUs on 1 node(s)" in done.stdout
    assert not list(tmp_path.rglob("weights.safetensors"))


def test_workers_with_other_code_than_the_driver_are_refused(head, tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    other = tmp_path / "other"
    shutil.copytree(REPOSITORY / "nnce_dist", other / "nnce_dist", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "nnce_dist" / "cli.py").open("a") as file:
        file.write("# one line more\n")
    done = submit(head, tmp_path, "env", f"PYTHONPATH={other}:{Path(__file__).parent}", "python", "job.py")
    assert done.returncode == 1
    assert re.search(
        r"node 127.0.0.2 has nnce_dist code \w{12} \(here: code \w{12}\); install the same on", done.stdout
    )


def test_a_stopped_job_has_saved(head, tmp_path):
    words = ["preset=smoke", "run.stages=[teacher]", "teacher.training.samples=1600000", f"run.dir={tmp_path}"]
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "30"}})
    options = ["--no-wait", "--submission-id", "stopped", "--runtime-env-json", patience]
    line = ["--working-dir", str(REPOSITORY), *options, "--", "python", "pipelines/imagenet64.py", *words]
    assert ray_job(head, "submit", *line).returncode == 0
    records = tmp_path / "smoke" / "teacher" / "metrics.jsonl"
    processes.wait_until(lambda: records.exists() and records.stat().st_size, 120, "the first step")
    assert ray_job(head, "stop", "stopped", timeout=60).returncode == 0
    said = ray_job(head, "logs", "stopped").stdout
    samples = re.search(r"error: stopped by SIGTERM at ([\d,]+) samples \(teacher\); the same command continues", said)
    assert samples, said
    assert (records.parent / "checkpoints" / f"{int(samples[1].replace(',', '')):012d}").is_dir()


def test_the_pipeline_runs_as_a_job(head, tmp_path):
    line = ["python", "pipelines/imagenet64.py", "preset=smoke", f"run.dir={tmp_path}"]
    done = submit(head, REPOSITORY, *line, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "smoke" / "report.html").stat().st_size > 10_000
    for job in ("teacher", "ten_step/m1", "ten_step/m100", "one_step", "samplers/untuned"):
        assert (tmp_path / "smoke" / job / "result.json").exists(), job
