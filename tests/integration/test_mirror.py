"""python -m pytest tests/integration/test_mirror.py

Checkpoints and the right to write them behind an S3 server over HTTP: copied in the background, whole or not at all.
"""

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from faulty_store import FaultyStore
from marks import slow
from s3_servers import only_credentials, s3_client
from test_interrupted import finish, seen, start, wait_for
from test_interrupted import log as teacher_log

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_resume import events, log, same
from toys import Numbers, Regression, StopAfter

from nnce_dist.config.schema import S3, Training
from nnce_dist.data.store import open_store
from nnce_dist.metrics import jsonl
from nnce_dist.metrics.recorder import Recorder
from nnce_dist.stages.owner import Owner
from nnce_dist.stages.remote_lease import RemoteGuard, remote_lease
from nnce_dist.training import checkpoint, mirror
from nnce_dist.training.checkpoint import CheckpointError, FencedError, Unguarded
from nnce_dist.training.loop import train
from nnce_dist.training.mirror import Mirror
from nnce_dist.training.resume import choose
from nnce_dist.training.saver import Saver
from nnce_dist.training.state import TrainState
from nnce_dist.training.stopping import Stopped

BUCKET = "runs"
BEAT = 0.4


@pytest.fixture(scope="module")
def proxy(moto):
    with only_credentials(), FaultyStore(moto) as proxy:
        s3_client(proxy.url).create_bucket(Bucket=BUCKET)
        yield proxy


@pytest.fixture
def url(proxy, tmp_path):
    """A place in the bucket that is empty."""
    proxy.fail("nothing", 0)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def store(proxy, url):
    return opened(proxy, url)


def opened(proxy, url: str, timeout: float = 30):
    """The store; few seconds are enough where every try is meant to fail."""
    return open_store([url], S3(endpoint_url=proxy.url, timeout=timeout, addressing="path"))


def run(folder: Path, store, url: str, steps: int = -1, guard=None, **options) -> TrainState:
    """Trains, or goes on, in a folder with a copy in the store."""
    training = Training(**{"samples": 160, "batch": 8, "log_every": 24, "checkpoint_every": 40, **options})
    recorder = Recorder({}, training.batch, [jsonl.JsonlSink(folder / "metrics.jsonl")])
    copies = Mirror(store, url, guard or Unguarded(), folder / "metrics.jsonl")
    saver = Saver(folder / "checkpoints", grace=5, mirror=copies, say=recorder.note)
    return train(Regression(), Numbers(), training, 5, StopAfter(steps), recorder, saver, recorder.note)


def bring_log(folder: Path, store, url: str) -> None:
    """What `stages.mirror.RunMirror.pull` does on a machine that has nothing."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(store.read(f"{url}/metrics.jsonl"))


@pytest.mark.slow
def test_a_machine_that_has_nothing_goes_on_from_the_copy(store, url, tmp_path):
    whole = run(tmp_path / "whole", store, f"{url}/whole")
    with pytest.raises(Stopped, match="at 88 samples; the same"):
        run(tmp_path / "here", store, f"{url}/parts", steps=11)
    bring_log(tmp_path / "there", store, f"{url}/parts")
    assert same(run(tmp_path / "there", store, f"{url}/parts"), whole)
    assert log(tmp_path / "there") == log(tmp_path / "whole")
    (said,) = events(tmp_path / "there")
    assert said.startswith("continuing at 88 of 160 samples") and said.endswith(f"fetched from {url}/parts)")


def test_as_many_copies_stay_as_checkpoints_here_the_newest_among_them(store, url, tmp_path):
    run(tmp_path, store, url, checkpoint_every=8, keep_last=3)
    there = Mirror(store, url, Unguarded(), tmp_path / "none").positions()
    assert len(there) <= 3 and max(there) == 160  # those that were overtaken while others went up are left out
    before = len(store.objects(url))
    run(tmp_path, store, url, keep_last=3)  # done already: nothing is copied again
    assert len(store.objects(url)) == before


@pytest.mark.slow
def test_the_best_copy_and_the_budget_hold_there_as_they_do_here(store, url, tmp_path):
    state = TrainState.of(Regression())

    def commit(folder: Path, samples_seen: int, figure: float, training: Training) -> Path:
        state.samples_seen, state.figure = samples_seen, figure
        saver = Saver(tmp_path / folder)
        saver.save(state, training)
        saver.wait()
        return checkpoint.at(saver.directory, samples_seen)

    training, copies = Training(keep_last=2), Mirror(store, url, Unguarded(), tmp_path / "none")
    for samples_seen, figure in ((8, 3.0), (16, 1.0), (24, 2.0), (32, 4.0)):
        path = commit("here", samples_seen, figure, training)
        if samples_seen != 16:  # which is overtaken while another one goes up
            copies.push(path, training)
        if samples_seen == 8:
            store.put(f"{url}/checkpoints/{4:012d}/state.safetensors", b"of a process that was killed")
    assert copies.positions() == {16, 24, 32}
    copies = Mirror(store, url, Unguarded(), tmp_path / "none")  # of another machine, which has the newest alone
    assert copies.fetch(32, tmp_path / "there") is None
    copies.push(commit("there", 40, 5.0, training), training)
    assert copies.positions() == {16, 32, 40}
    two = dataclasses.replace(training, keep_last=9, keep_bytes=int(2.5 * checkpoint.size(path)))
    copies.push(commit("there", 48, 5.0, two), two)
    assert copies.positions() == {16, 48}


def newest(store, url: str, file: str) -> str:
    """The address of a file of the newest copy."""
    return max(blob.url for blob in store.objects(f"{url}/checkpoints") if blob.url.endswith(file))


@pytest.mark.parametrize("damage", ["no manifest", slow("flipped"), slow("cut"), slow("missing")])
def test_a_half_uploaded_or_damaged_copy_is_passed_over_and_named(store, url, tmp_path, damage):
    whole = run(tmp_path / "whole", store, url)
    tensors = newest(store, url, "state.safetensors")
    content = store.read(tensors)
    if damage == "no manifest":
        store.delete(newest(store, url, "manifest.json"))
    elif damage == "missing":
        store.delete(tensors)
    else:
        store.put(tensors, content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    bring_log(tmp_path / "there", store, url)
    assert same(run(tmp_path / "there", store, url), whole)
    assert f"{160:012d} in {url} passed over: " in events(tmp_path / "there")[0]
    assert not list((tmp_path / "there/checkpoints").glob(".*"))
    chosen, _ = choose(tmp_path / "third", Mirror(store, url, Unguarded(), tmp_path / "none"))
    assert chosen.name == f"{160:012d}"  # made again, and copied again


@pytest.mark.slow
def test_training_goes_on_while_the_store_refuses_and_the_copy_is_made_up_for(proxy, store, url, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_PAUSE", 0.1)
    copies = Mirror(opened(proxy, url, 3), url, Unguarded(), tmp_path / "none")
    said = []

    class Patient(StopAfter):
        """Looks after a step whether the store should come back."""

        def stop_signal(self):
            if self.steps == -8:
                proxy.fail("slow down")
            if self.steps == -16:
                while not said:  # the store's own retries have ended once
                    time.sleep(0.05)
                proxy.fail("nothing", 0)
            return super().stop_signal()

    training = Training(samples=160, batch=8, log_every=160, checkpoint_every=8)
    saver = Saver(tmp_path / "checkpoints", mirror=copies, say=said.append)
    recorder = Recorder({}, 8)
    state = train(Regression(), Numbers(), training, 5, Patient(-1), recorder, saver, said.append)
    assert said and all("no whole answer" in line and "training goes on" in line and "\n" not in line for line in said)
    copies = Mirror(store, url, Unguarded(), tmp_path / "none")
    assert max(copies.positions()) == 160
    (tmp_path / "there").mkdir()
    chosen, _ = choose(tmp_path / "there", copies)
    assert torch.equal(checkpoint.read_tensors(chosen)["network/a/weight"], state.task.networks["a"].weight)


@pytest.mark.slow
def test_a_store_that_stays_away_is_told_at_the_end(proxy, store, url, tmp_path, monkeypatch):
    monkeypatch.setattr("nnce_dist.training.saver.PATIENCE", 3.0)
    run(tmp_path, store, url, samples=80)
    proxy.fail("unavailable")
    with pytest.raises(CheckpointError, match=f"{160:012d} could not be copied there within 3 s") as told:
        run(tmp_path, opened(proxy, url, 3), url)
    assert "\n" not in str(told.value) and str(told.value).startswith(url)
    assert any(f"not looked for in {url}: " in event for event in events(tmp_path))
    proxy.fail("nothing", 0)
    run(tmp_path, store, url)  # and made up for by the next start
    assert f"{160:012d}" in newest(store, url, "manifest.json")


@pytest.mark.slow
def test_the_copy_of_a_run_that_was_taken_over_is_not_written(store, url, tmp_path):
    with remote_lease(store, url, 0, print) as epoch:
        guard = RemoteGuard(store, url, epoch)
        guard.check()
        with pytest.raises(Stopped):
            run(tmp_path, store, f"{url}/job", 11, guard)
    with (
        remote_lease(store, url, 0, print),
        pytest.raises(FencedError, match=f"taken over by process {os.getpid()} on"),
    ):
        run(tmp_path, store, f"{url}/job", guard=guard)
    assert f"{88:012d}" in newest(store, f"{url}/job", "manifest.json")


def copy_for_ever(endpoint: str, url: str, folder: str) -> None:
    """Commits and copies large states until it is killed."""
    store = open_store([url], S3(endpoint_url=endpoint, timeout=20, addressing="path"))
    run(Path(folder), store, url, samples=80_000, checkpoint_every=8, log_every=800)


@pytest.mark.slow
def test_killed_at_random_moments_of_an_upload_the_copy_has_a_whole_checkpoint(proxy, store, url, tmp_path):
    draw, context = random.Random(0), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "nnce_dist.training.loop", "nnce_dist.data.s3"])
    copies, reached, half = Mirror(store, url, Unguarded(), tmp_path / "none"), 0, 0
    for kill in range(5):
        process = context.Process(target=copy_for_ever, args=(proxy.url, url, str(tmp_path / "here")))
        process.start()
        deadline = time.monotonic() + 90
        while max(copies.positions(), default=0) <= reached:
            assert time.monotonic() < deadline and process.is_alive()
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join(timeout=30)
        there = tmp_path / f"there-{kill}"
        there.mkdir()
        chosen, why = choose(there, copies)
        half += "not uploaded whole" in why
        assert chosen and not checkpoint.problem(chosen), why
        reached = max(copies.positions())
    print(f"5 kills, {half} of them left half an upload; {reached} samples")


@pytest.mark.slow
def test_a_run_goes_on_with_another_machine_and_back(proxy, url, tmp_path):
    """Two folders stand for two machines, with nothing in common but the bucket."""
    there = [f"run.mirror={url}", f"data.s3.endpoint_url={proxy.url}", "data.s3.addressing=path"]
    code, said = finish(start(tmp_path, "run"))
    assert code == 0, said
    whole = (tmp_path / "run/teacher/weights.safetensors").read_bytes()
    one, two = (tmp_path / name for name in ("one", "two"))
    first = start(one, "run", *there)
    copied = lambda: [blob for blob in objects(proxy, url) if "teacher/checkpoints/" in blob and "manifest" in blob]  # noqa: E731
    wait_for(first, copied, "the first copy")
    first.kill()
    finish(first)
    second = start(two, "run", *there)
    wait_for(second, lambda: seen(two / "run") > 0, "training on the other machine")
    code, said = finish(start(one, "run", *there))
    assert code == 2 and f"process {second.pid} on " in said and url in said, said
    code, said = finish(second)
    assert code == 0, said
    assert (two / "run/teacher/weights.safetensors").read_bytes() == whole
    assert teacher_log(two / "run") == teacher_log(tmp_path / "run")
    assert "fetched from" in events(two / "run/teacher")[0]
    code, said = finish(start(one, "run", *there))
    assert code == 0 and "samples/s" not in said, said  # it is done: nothing is trained
    assert (one / "run/teacher/weights.safetensors").read_bytes() == whole
    assert (one / "run/report.html").exists() and f"{url}/run/report.html" in objects(proxy, url)


def objects(proxy, url: str) -> list[str]:
    return [blob.url for blob in opened(proxy, url).objects(url)]


def other_machine(store, url: str, **changes) -> Owner:
    """A record of an owner of whom nothing can be known from here."""
    owner = dataclasses.replace(Owner.of_this_process(5), machine="elsewhere", host="far-away", **changes)
    store.put(f"{url}/lease/000005.json", owner.encode())
    return owner


def test_a_second_job_on_another_machine_is_refused_at_the_first_sign_of_life(store, url):
    with remote_lease(store, url, 0, print, BEAT):
        mine = store.read(f"{url}/lease/000001.json")
        moved = dataclasses.replace(Owner.decode(mine), machine="elsewhere")  # as another machine sees it
        store.put(f"{url}/lease/000001.json", moved.encode())
        start = time.monotonic()
        refused = pytest.raises(ValueError, match=f"{url}: process {os.getpid()} on .* writes this run")
        with refused, remote_lease(store, url, 0, print, BEAT):
            pass
        assert time.monotonic() - start < 3 * BEAT + 5


@pytest.mark.slow
def test_a_lease_without_a_sign_of_life_is_taken_over(store, url):
    other_machine(store, url)
    said, start = [], time.monotonic()
    with remote_lease(store, url, 0, said.append, BEAT) as epoch:
        assert epoch == 6 and time.monotonic() - start >= 3 * BEAT
    assert "waiting up to 1.2 s for a sign of life" in said[0] and "taking over" in said[1] and "far-away" in said[1]
    assert [blob.url[-11:] for blob in store.objects(f"{url}/lease")] == ["000006.json"]
    said.clear()
    with remote_lease(store, url, 9, said.append, BEAT) as epoch:  # released: no wait; above the epochs known here
        assert epoch == 10 and not said


def test_the_lease_of_a_process_that_is_known_to_have_ended_needs_no_waiting(store, url):
    child = subprocess.Popen(["true"])
    child.wait(timeout=10)
    ended = dataclasses.replace(Owner.of_this_process(1), pid=child.pid)
    store.put(f"{url}/lease/000001.json", ended.encode())
    said, start = [], time.monotonic()
    with remote_lease(store, url, 0, said.append, beat=60):
        assert time.monotonic() - start < 10 and len(said) == 1


def test_of_two_that_take_over_at_once_one_wins(store, url, tmp_path):
    other_machine(store, url)
    with pytest.raises(ValueError, match="another job has just begun to write this run"):
        from nnce_dist.stages import remote_lease as module

        module._create(store, url, Owner.of_this_process(5))


@pytest.mark.slow
def test_a_store_that_is_away_for_a_few_beats_does_not_cost_the_lease(proxy, url):
    store = opened(proxy, url, 3)
    with remote_lease(store, url, 0, print, BEAT) as epoch:
        proxy.fail("unavailable", 4)
        time.sleep(4 * BEAT)
        RemoteGuard(store, url, epoch).check()
