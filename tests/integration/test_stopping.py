"""python -m pytest tests/integration/test_stopping.py

A run on Ray that is told to stop saves, leaves with 128 + the signal's number, and loses nothing; one that is killed
leaves no process behind and goes on from its newest checkpoint.
"""

import re
import signal
import subprocess
import sys

import processes
import pytest
import torch
from small_run import REPOSITORY, SAMPLES, SETTINGS, assert_equal_to_rounding, go_on_here

from nnce_dist.metrics.jsonl import FILE_NAME, read

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def steps(records):
    """How many steps have been written down: one a line."""
    return records.read_bytes().count(b"samples_seen") if records.exists() else 0


def interrupt(directory, number, *words):
    """Runs the teacher on a Ray of its own, sends the driver a signal as soon as it trains; (exit code, last line)."""
    records = directory / "smoke" / "teacher" / FILE_NAME
    line = [sys.executable, "pipelines/imagenet64.py", *SETTINGS, f"run.dir={directory}", *words]
    with processes.ray_environment() as settings:
        driver = subprocess.Popen(
            line, cwd=REPOSITORY, env=processes.outside() | settings, stderr=subprocess.PIPE, text=True
        )
        saved = records.parent / "checkpoints"
        processes.wait_until(
            lambda: driver.poll() is not None or (steps(records) > 5 and any(saved.glob("0*"))), 180, "a checkpoint"
        )
        driver.send_signal(number)
        _, said = driver.communicate(timeout=60)
        mark = settings[processes.MARK]  # Ray's agents look for a killed head for a minute and more
        processes.wait_until(lambda: not processes.marked(mark), 180, "the end of all processes")
    return driver.returncode, said.strip().rpartition("\n")[2]


@pytest.mark.parametrize(("count", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_to_the_driver_saves_and_nothing_is_lost(uninterrupted, tmp_path, count, number):
    code, line = interrupt(tmp_path, number, f"workers.count={count}")
    assert code == 128 + number, line
    told = rf"error: stopped by {number.name} at ([\d,]+) samples \(teacher\); the same command continues"
    samples = int(re.fullmatch(told, line)[1].replace(",", ""))
    assert 0 < samples < SAMPLES
    assert (tmp_path / "smoke" / "teacher" / "checkpoints" / f"{samples:012d}").is_dir()
    assert not (tmp_path / "smoke" / ".ray").exists()
    weights = go_on_here(tmp_path)
    if count == 1:
        assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in weights.items())
    else:
        assert_equal_to_rounding(weights, uninterrupted)


def test_a_killed_driver_takes_its_processes_along_and_nothing_is_lost(uninterrupted, tmp_path):
    code, _ = interrupt(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    weights = go_on_here(tmp_path)
    records = read(tmp_path / "smoke" / "teacher" / FILE_NAME)
    (story,) = [record["event"] for record in records if "event" in record]
    assert re.match(r"continuing at (64|\d{3,}) of 1,600 samples", story)
    assert all(torch.equal(tensor, uninterrupted[name]) for name, tensor in weights.items())
