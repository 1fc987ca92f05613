"""python -m pytest tests/integration/test_interrupted.py

The main job as a person runs it, stopped and killed in its processes, goes on as if nothing had happened.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from nnce_dist.metrics import jsonl

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
PIPELINE = [sys.executable, "pipelines/imagenet64.py", "preset=smoke", "workers.runtime=local", "run.stages=[teacher]"]
TEACHER = ["samples=1600", "log_every=80", "checkpoint_every=160"]
# beginnings of names
OF_THE_CLOCK = ("time", "started", "useful_seconds", "goodput", "images_per_second", "step_seconds")
OF_THE_CLOCK += ("rank_step_seconds", "checkpoint_", "data/")


def start(folder: Path, name: str, *words: str) -> subprocess.Popen:
    """The job, started; its pictures are shared by all."""
    settings = [f"teacher.training.{word}" for word in TEACHER]
    places = [f"run.dir={folder}", f"run.name={name}", f"data.cache_dir={folder}/cache"]
    return subprocess.Popen(
        [*PIPELINE, *settings, *places, *words],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    """The exit code and what was said on standard error."""
    try:
        _, said = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, said


def seen(folder: Path, stage: str = "teacher") -> int:
    """The position of the newest line of a job's log."""
    path = folder / stage / "metrics.jsonl"
    return max((record.get("samples_seen", 0) for record in jsonl.read(path)), default=0) if path.exists() else 0


def wait_for(process: subprocess.Popen, condition, what: str) -> None:
    processes.wait_until(lambda: condition() or process.poll() is not None, 120, what)
    assert process.poll() is None, process.communicate()


def log(folder: Path) -> list[dict]:
    records = [record for record in jsonl.read(folder / "teacher/metrics.jsonl") if "samples_seen" in record]
    return [{key: v for key, v in record.items() if not key.startswith((*OF_THE_CLOCK, "run"))} for record in records]


def test_stopped_and_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    whole, parts, draw = tmp_path / "whole", tmp_path / "parts", random.Random(1)
    code, said = finish(start(tmp_path, "whole"))
    assert code == 0, said
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        process, before = start(tmp_path, "parts"), seen(parts)
        position = min(before + draw.randint(1, 5) * 80, 1360)
        wait_for(process, lambda position=position: seen(parts) >= position, f"{position} samples")
        process.send_signal(number)
        code, said = finish(process, timeout=60)
        if number == signal.SIGKILL:
            continue
        assert code == 128 + number, said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: stopped by {number.name} at ") and line.endswith("the same command continues")
        assert not list((parts / "teacher/checkpoints").glob(".*"))
    code, said = finish(start(tmp_path, "parts"))
    assert code == 0, said
    assert "taking over" not in said  # on standard output
    assert (whole / "teacher/weights.safetensors").read_bytes() == (parts / "teacher/weights.safetensors").read_bytes()
    assert log(whole) == log(parts) and len(log(parts)) == 20
    events = [record["event"] for record in jsonl.read(parts / "teacher/metrics.jsonl") if "event" in record]
    assert events and all(event.startswith("continuing at ") for event in events)
    lines = jsonl.training_records(parts / "teacher")
    assert len({line["started"] for line in lines}) == 1  # goodput is that of all four starts
    useful = [line["useful_seconds"] for line in lines]
    assert useful == sorted(useful) and lines[-1]["goodput"] < 0.9
    assert lines[-1]["goodput"] == pytest.approx(useful[-1] / (lines[-1]["time"] - lines[-1]["started"]), rel=0.01)


def test_a_second_start_is_refused_and_a_second_signal_ends_at_once(tmp_path):
    first = start(tmp_path, "run", "teacher.training.samples=160000")
    wait_for(first, lambda: seen(tmp_path / "run"), "the first log line")
    code, said = finish(start(tmp_path, "run", "teacher.training.samples=160000"))
    assert code == 2 and f"process {first.pid} on " in said and len(said.splitlines()) == 1
    first.send_signal(signal.SIGSTOP)  # so that both signals are there when it goes on
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    code, said = finish(first, timeout=60)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT) and "Traceback" not in said


def test_a_stop_while_a_sampler_is_measured_waits_for_no_other(tmp_path):
    words = ["teacher.training.samples=80", "evaluation.num_samples=20000", "evaluation.draws=50"]
    process = start(tmp_path, "run", *words)
    samples = tmp_path / "run/samplers/teacher/samples.png"
    wait_for(process, samples.exists, "the measurement of the teacher")
    process.send_signal(signal.SIGTERM)
    code, said = finish(process, timeout=60)
    assert code == 143, said
    assert "error: stopped by SIGTERM at its evaluation (teacher); the same command continues" in said
    assert (tmp_path / "run/teacher/result.json").exists() and not (samples.parent / "result.json").exists()


def test_a_disk_that_fills_up_ends_the_run_with_a_line_and_exit_code_1(tmp_path):
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a tmpfs of his own (unshare --user --mount)")
    (tmp_path / "disk").mkdir()
    filler = f"""
        mount -t tmpfs -o size=8m tmpfs {tmp_path}/disk
        (until ls {tmp_path}/disk/run/teacher/checkpoints/000*; do sleep .1; done
         for n in $(seq 100); do cat /dev/zero > {tmp_path}/disk/filler$n; sleep .1; done) > /dev/null 2>&1 &
        "$@"; code=$?; kill $!; ls {tmp_path}/disk/run/teacher/checkpoints; exit $code
    """
    words = ["teacher.training.samples=1600000", "teacher.training.checkpoint_every=16", "run.name=run"]
    command = [*PIPELINE, *words, f"run.dir={tmp_path}/disk", f"data.cache_dir={tmp_path}/cache"]
    done = subprocess.run(
        [*inside, "sh", "-c", filler, "sh", *command],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "bytes cannot be written, tried twice (" in line and "/teacher/checkpoints/0" in line
    (left,) = [line for line in done.stdout.splitlines() if line.startswith("0000")]
    assert f"the newest checkpoint is {tmp_path}/disk/run/teacher/checkpoints/{left}" in line
