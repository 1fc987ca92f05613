"""python -m pytest tests/unit/test_checkpoints.py

What is committed is whole, whatever happens while it is written; what goes, goes afterwards.
"""

import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from toys import Numbers, Regression, Silent, StopAfter

from nnce_dist.config.schema import Training
from nnce_dist.training import checkpoint
from nnce_dist.training.checkpoint import CheckpointError, FencedError
from nnce_dist.training.loop import train
from nnce_dist.training.resume import choose
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.saver import Saver
from nnce_dist.training.state import TrainState
from nnce_dist.training.stopping import Stopped


def state_of(num_numbers: int) -> TrainState:
    """A state with a tensor of so many float32 numbers among the others."""
    task = Regression()
    task.count = torch.arange(float(num_numbers))
    return TrainState.of(task)


def commit(saver: Saver, state: TrainState, samples_seen: int, **options) -> Path:
    state.samples_seen = samples_seen
    saver.save(state, Training(**options))
    saver.wait()
    return checkpoint.at(saver.directory, samples_seen)


def positions(directory: Path) -> list[int]:
    return sorted(map(checkpoint.position, checkpoint.committed(directory)))


def test_the_newest_and_the_best_are_kept(tmp_path):
    saver, state = Saver(tmp_path), state_of(8)
    for samples_seen, figure in ((8, 3.0), (16, 1.0), (24, float("nan")), (32, 2.0), (40, None), (48, 2.0)):
        state.figure = figure
        commit(saver, state, samples_seen, keep_last=2, keep_best="a/loss")
    assert positions(tmp_path) == [16, 40, 48]


def test_a_budget_takes_the_oldest_first_and_never_the_newest(tmp_path):
    saver, state = Saver(tmp_path), state_of(1000)
    one = checkpoint.size(commit(saver, state, 8))
    for samples_seen in (16, 24, 32):
        commit(saver, state, samples_seen, keep_last=9, keep_bytes=int(3.5 * one))
    assert positions(tmp_path) == [16, 24, 32]
    commit(saver, state, 40, keep_last=9, keep_bytes=1)
    assert positions(tmp_path) == [40]


def test_an_old_checkpoint_goes_only_after_the_new_one_is_committed(tmp_path, monkeypatch):
    saver, state, seen = Saver(tmp_path), state_of(8), []
    commit(saver, state, 8)
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *args: (write(*args), seen.append(positions(tmp_path)))[0])
    commit(saver, state, 16, keep_last=1)
    assert seen == [[8, 16]] and positions(tmp_path) == [16]


def test_a_figure_that_does_not_exist_is_refused_with_the_names_of_those_that_do(tmp_path):
    class Recorder(Silent):
        def flush(self, samples_seen, **scalars):
            return {"samples_seen": samples_seen, "a/loss": 1.0, "b/loss": 2.0}

    training = Training(samples=32, batch=8, log_every=8, keep_best="a/los")
    with pytest.raises(ValueError, match=r"training.keep_best='a/los' is no figure of this training; there are: a/l"):
        train(Regression(), Numbers(), training, 5, LocalRuntime("cpu"), Recorder(), Saver(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"), [({"keep_bytes": 10}, "one checkpoint takes"), ({"keep_last": 10**9}, "do not fit into the")]
)
def test_too_little_room_is_found_before_training_starts(tmp_path, options, says):
    training = Training(samples=32, batch=8, **options)
    with pytest.raises(ValueError, match=says):
        train(Regression(), Numbers(), training, 5, LocalRuntime("cpu"), Silent(), Saver(tmp_path))


class SlowDisk:
    """Makes every commit wait, as a guard may."""

    epoch = 3

    def __init__(self, seconds: float):
        self.seconds = seconds

    def check(self):
        time.sleep(self.seconds)


def test_training_goes_on_while_a_checkpoint_is_written_and_what_is_written_is_of_its_step(tmp_path):
    saver, state = Saver(tmp_path, SlowDisk(0.5)), state_of(100_000)
    start, samples = time.monotonic(), state.tensors()["task/count"].clone()
    state.samples_seen = 8
    saver.save(state, Training())
    state.task.count += 1  # the next step moves it
    assert time.monotonic() - start < 0.4 and not positions(tmp_path)
    saver.wait()
    assert torch.equal(checkpoint.read_tensors(checkpoint.at(tmp_path, 8))["task/count"], samples)
    commit(saver, state, 16)
    assert torch.equal(checkpoint.read_tensors(checkpoint.at(tmp_path, 16))["task/count"], samples + 1)


@pytest.mark.slow
def test_training_stands_still_for_a_small_part_of_what_saving_takes(tmp_path):
    saver, state = Saver(tmp_path), state_of(16_000_000)
    commit(saver, state, 8)  # the first one also makes the host's buffers
    first = saver.figures["checkpoint_stall_seconds"]
    written = 0.0
    for samples_seen in (16, 24, 32):
        commit(saver, state, samples_seen)
        written += saver.figures["checkpoint_seconds"]
    stalled = saver.figures["checkpoint_stall_seconds"] - first
    print(f"stalled {stalled:.3f} s, written in {written:.3f} s: ratio {stalled / written:.3f}")
    assert stalled < 0.3 * written
    assert saver.figures["checkpoint_bytes"] > 64e6


def test_a_save_that_hangs_is_given_up_in_time_on_a_stop(tmp_path):
    saver = Saver(tmp_path, SlowDisk(30), grace=0.3)
    start = time.monotonic()
    with pytest.raises(Stopped, match="at 16 samples, which are not saved: .* not written within 0 s; does the disk"):
        train(Regression(), Numbers(), Training(samples=32, batch=8), 5, StopAfter(2), Silent(), saver)
    assert time.monotonic() - start < 10


class TakenOver:
    """A guard that loses its right after some commits."""

    epoch = 1

    def __init__(self, commits: int):
        self.commits = commits

    def check(self):
        self.commits -= 1
        if self.commits < 0:
            raise FencedError("taken over")


def test_a_fenced_off_writer_cannot_commit(tmp_path):
    training = Training(samples=80, batch=8, checkpoint_every=8, log_every=80)
    with pytest.raises(FencedError, match="taken over"):
        train(Regression(), Numbers(), training, 5, LocalRuntime("cpu"), Silent(), Saver(tmp_path, TakenOver(3)))
    assert positions(tmp_path) == [16, 24]
    assert json.loads((tmp_path / f"{24:012d}" / "manifest.json").read_text())["epoch"] == 1
    assert not list(tmp_path.glob(".*"))


def test_a_limit_on_files_ends_the_run_with_a_line_and_leaves_the_last_good_checkpoint(tmp_path):
    """RLIMIT_FSIZE stands for a disk that is full: the same code path, another error number (EFBIG)."""
    saver, state = Saver(tmp_path), state_of(100_000)
    for samples_seen in (8, 16):
        commit(saver, state, samples_seen)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="tried twice") as caught:
            commit(saver, state, 24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = str(caught.value)
    assert "\n" not in line and str(checkpoint.at(tmp_path, 24)) in line and "400" in line
    assert positions(tmp_path) == [16] and not checkpoint.problem(checkpoint.at(tmp_path, 16))
    assert not list(tmp_path.glob(".*"))


ON_A_SMALL_DISK = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from nnce_dist.training import retention
    from test_checkpoints import *

    disk = Path(sys.argv[2])
    saver, state = Saver(disk / "checkpoints"), state_of(100_000)
    commit(saver, state, 8)
    commit(saver, state, 16)
    fill(disk / "a")
    commit(saver, state, 24)  # at the second try, in the place of the oldest one
    assert positions(saver.directory) == [16, 24], positions(saver.directory)
    fill(disk / "b")
    commit(saver, state, 32)
    assert positions(saver.directory) == [24, 32], positions(saver.directory)
    retention.make_room(saver.directory)
    fill(disk / "c")
    try:
        commit(saver, state, 40)
    except CheckpointError as error:
        assert positions(saver.directory) == [32] and not checkpoint.problem(checkpoint.at(saver.directory, 32))
        assert not list(saver.directory.glob(".*"))
        print(error)
"""


def fill(path: Path) -> None:
    """Leaves no room on a disk."""
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


@pytest.mark.slow
def test_on_a_full_disk_only_surplus_goes_and_the_last_good_checkpoint_stays(tmp_path):
    inside = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no user mount a tmpfs of his own (unshare --user --mount)")
    script = f'mount -t tmpfs -o size=1400k tmpfs {tmp_path} && exec "$@"'
    python = [sys.executable, "-c", textwrap.dedent(ON_A_SMALL_DISK), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run([*inside, "sh", "-c", script, "sh", *python], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "/checkpoints/000000000040" in line and "No space left on device" in line and "400" in line


def train_large(folder: Path, **options) -> TrainState:
    training = Training(samples=8 * 500, batch=8, **options)
    return train(LargeState(), Numbers(), training, 5, LocalRuntime("cpu"), Silent(), Saver(folder), lambda line: None)


def save_for_ever(folder: str) -> None:
    """Trains with a checkpoint at every step, until it is killed or done."""
    train_large(Path(folder), checkpoint_every=8)


class LargeState(Regression):
    """With tensors that take a while to write."""

    def extra_state(self):
        return super().extra_state() | {"ballast": self.count.expand(200_000)}


@pytest.mark.slow
def test_killed_at_random_moments_of_saving_every_start_finds_a_whole_checkpoint(tmp_path):
    draw = random.Random(0)
    context = multiprocessing.get_context("forkserver")  # its children start in milliseconds, with torch loaded
    context.set_forkserver_preload(["torch._dynamo", "nnce_dist.training.loop"])  # Adam's first step needs dynamo
    reached, torn = 0, 0
    for _ in range(20):
        process = context.Process(target=save_for_ever, args=(str(tmp_path),))
        process.start()
        deadline = time.monotonic() + 60
        while max(positions(tmp_path), default=0) <= reached:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(process.pid, 9)
        process.join(timeout=30)
        torn += bool(list(tmp_path.glob(".saving-*")))
        chosen, why = choose(tmp_path)
        assert checkpoint.position(chosen) == max(positions(tmp_path)) and "passed over" not in why
        reached = checkpoint.position(chosen)
    assert torn >= 5, "the kills hardly ever met a save"
    print(f"20 kills, {torn} of them in the middle of a save; {reached} samples")
    ends = [train_large(folder).tensors() for folder in (tmp_path, tmp_path / "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
