"""python -m pytest tests/integration/test_on_ray.py"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch

from nnce_dist.config.schema import Workers
from nnce_dist.training.stopping import Stopped

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def sum_of_ranks(payload, runtime):
    """Adds up (rank + 1) * payload['scale'] over ranks, in float64 and float32."""
    total = torch.tensor([(runtime.rank + 1) * payload["scale"]], dtype=torch.float64)
    runtime.all_reduce(total)
    single = torch.full((3,), float(runtime.rank + 1), device=runtime.device)
    runtime.all_reduce(single)
    runtime.barrier()
    return {
        "total": total.item(),
        "single": single.tolist(),
        "world_size": runtime.world_size,
        "rank": runtime.rank,
        "threads": torch.get_num_threads(),
    }


def refuse_on_rank_1(payload, runtime):
    """Rank 1 refuses its input while rank 0 waits for it."""
    if runtime.rank == 1:
        raise ValueError("data.train: shard 7 is empty; write it again")
    runtime.barrier()


def hit_at_each_start(payload, runtime):
    """Works until it is hit by the signal that is due at this start; tells how often it was started, when none is."""
    starts = Path(payload["directory"]) / payload["name"]
    if runtime.rank == 0:
        with starts.open("a") as file:
            file.write("x")
    runtime.barrier()
    start = len(starts.read_text())
    for step in range(100 if start <= len(payload["signals"]) else 1):
        if number := runtime.stop_signal():
            raise Stopped(number, f"step {step}")
        if step == 5 and runtime.rank == runtime.world_size - 1:
            os.kill(os.getpid(), payload["signals"][start - 1])
        time.sleep(0.1)
    return start


def note_restart(payload, cause, line):
    """Keeps what is told about a restart."""
    with (Path(payload["directory"]) / f"{payload['name']}-restarts").open("a") as file:
        file.write(f"{cause}: {line}\n")


def restarts(payload):
    """What `note_restart` has kept: causes and lines."""
    lines = (Path(payload["directory"]) / f"{payload['name']}-restarts").read_text().splitlines()
    return [line.split(": ", 1) for line in lines]


def trial(payload, runtime):
    """Squares a number; refuses 3, dies at 4."""
    if payload["number"] == 3:
        raise RuntimeError("3 is not for squaring")
    if payload["number"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": payload["number"] ** 2, "infinity": float("inf"), "world_size": runtime.world_size}


def never_end(payload, runtime):
    """Says that it runs, and goes on for longer than any test."""
    Path(payload["mark"]).touch()
    time.sleep(1000)


class Listed:
    """A feed of trials that are all known beforehand."""

    def __init__(self, payloads):
        self._waiting, self.outcomes = iter(payloads), {}

    def next(self):
        return next(self._waiting, None)

    def done(self, payload, outcome):
        self.outcomes[payload["name"]] = outcome


def run_trials(trial_fn, payloads, *where, **settings):
    """The outcomes of all trials in order."""
    from nnce_dist.on_ray.sweep import run_feed

    feed = Listed(payloads)
    run_feed(trial_fn, feed, *where, **settings)
    return [feed.outcomes[payload["name"]] for payload in payloads]


def group(**settings):
    """Workers that wait for nothing longer than a test may."""
    return Workers(start_timeout=60, **settings)


def placement_groups():
    """The groups that still hold resources."""
    from ray.util import placement_group_table

    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def assert_nothing_is_held(seconds=15):
    import ray

    deadline = time.monotonic() + seconds
    while placement_groups() or ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, (placement_groups(), ray.available_resources())
        time.sleep(0.5)


def test_workers_reduce_over_ranks(ray_session, tmp_path):
    from nnce_dist.on_ray.train import run_on_workers

    value = run_on_workers(sum_of_ranks, {"scale": 0.1}, group(count=2), tmp_path)
    assert value["total"] == pytest.approx(0.1 + 0.2, rel=1e-15) and value["single"] == [3.0] * 3
    assert (value["world_size"], value["rank"], value["threads"]) == (2, 0, 1)
    assert not (tmp_path / ".ray").exists()
    assert_nothing_is_held()


def test_a_refused_input_ends_the_group_at_once_with_its_line(ray_session, tmp_path):
    from nnce_dist.on_ray.train import run_on_workers

    start = time.monotonic()
    with pytest.raises(ValueError, match="^data.train: shard 7 is empty; write it again$"):
        run_on_workers(refuse_on_rank_1, {}, group(count=2, restarts=5), tmp_path)
    assert time.monotonic() - start < 60  # neither the collective's timeout (300 s) nor a restart
    assert_nothing_is_held()


def test_whatever_hits_a_rank_the_group_goes_on(ray_session, tmp_path):
    from nnce_dist.on_ray.train import run_on_workers

    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]
    payload = {"name": "group", "directory": str(tmp_path), "signals": signals}
    workers = group(count=2, restarts=3, stall_timeout=5)
    assert run_on_workers(hit_at_each_start, payload, workers, tmp_path, note_restart) == 4
    (killed, died), (told, told_to_go), (stopped, stalled) = restarts(payload)
    assert killed == "worker_died" and died.startswith("rank 1: its process died")
    assert told == "error" and re.search(r"rank \d: stopped by SIGTERM at step [5-9]", told_to_go)
    assert stopped == "stalled" and stalled.startswith("no progress for 5 s (workers.stall_timeout); its stacks are in")
    assert any("hit_at_each_start" in path.read_text() for path in (tmp_path / "stalled").glob("*.txt"))


NCCL_SAYS = """#!/bin/sh
[ "$2" = text ] && echo "rank 1 launched one AllReduce less" && exit
cat <<END
{"timestamp": "$(date +%s%N)", "communicators": [{"hash": "world", "ranks": [
  {"rank": 0, "status": {"abort_flag": false, "finalize_called": false, "destroy_flag": false, "init_state": 0},
   "collective_counts": {"AllReduce": 8}},
  {"rank": 1, "status": {"abort_flag": false, "finalize_called": false, "destroy_flag": false, "init_state": 0},
   "collective_counts": {"AllReduce": 7}}]}]}
END
"""


def hang_once(payload, runtime):
    """At its first start a rank leaves the others waiting for good."""
    marker = Path(payload["directory"]) / f"started-{runtime.rank}"
    if not marker.exists():
        marker.touch()
        time.sleep(1000)
    return "done"


@pytest.mark.parametrize("restarts_left", [1, 0])
def test_a_hang_that_nccl_reports_is_ended_by_ray_train_and_its_evidence_stays(
    ray_session, tmp_path, monkeypatch, restarts_left
):
    from nnce_dist.on_ray import train
    from nnce_dist.on_ray.environment import ClusterError

    program = ray_session / "bin" / "ncclras"  # there is no GPU here: what Ray Train asks is made up, the rest is real
    program.parent.mkdir(exist_ok=True)
    program.write_text(NCCL_SAYS)
    program.chmod(0o755)
    for name in ("ENABLE_NCCL_HANG_DETECTOR", "NCCL_RAS_ACTION", "NCCL_RAS_CONFIRM_DURATION_S"):
        monkeypatch.setenv(f"RAY_TRAIN_{name}", "")  # so that it is put back
        monkeypatch.delenv(f"RAY_TRAIN_{name}")
    monkeypatch.setenv("RAY_TRAIN_NCCL_RAS_MIN_POLL_INTERVAL_S", "0.3")
    payload = {"name": "hang", "directory": str(tmp_path)}
    workers = group(count=2, restarts=restarts_left, collective_timeout=4)
    train._detect_hangs(dataclasses.replace(workers, gpus=1))
    try:
        if restarts_left:
            assert train.run_on_workers(hang_once, payload, workers, tmp_path, note_restart) == "done"
            ((cause, line),) = restarts(payload)
            assert cause == "stalled" and "collectives of its ranks do not match" in line and "/stalled/nccl-" in line
        else:
            with pytest.raises(ClusterError, match="do not match and stand still.*folder stalled .*after 0 restarts"):
                train.run_on_workers(hang_once, payload, workers, tmp_path, note_restart)
    finally:
        program.unlink()
    (kept,) = (tmp_path / "stalled").glob("nccl-*")
    assert all("hang_once" in (kept / "stack_traces" / f"rank_{rank}.log").read_text() for rank in range(2))
    assert "one AllReduce less" in (kept / "nccl_ras" / "ncclras_report.txt").read_text()
    assert_nothing_is_held()


def test_whatever_hits_a_trial_it_goes_on(ray_session, tmp_path):
    payloads = [
        {"name": number.name, "directory": str(tmp_path), "signals": [number]}
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
    ]
    workers = group(restarts=1, stall_timeout=5)
    outcomes = run_trials(hit_at_each_start, payloads, workers, tmp_path, on_restart=note_restart)
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(2, None)] * 3
    assert [restarts(payload)[0][0] for payload in payloads] == ["worker_died", "error", "stalled"]


def test_a_sweep_gives_every_trial_its_outcome(ray_session, tmp_path, capfd):
    payloads = [{"name": f"n-{number}", "number": number} for number in (1, 3, 2, 4)]
    outcomes = run_trials(trial, payloads, group(restarts=0), tmp_path)
    assert [outcome.name for outcome in outcomes] == ["n-1", "n-3", "n-2", "n-4"]
    assert outcomes[0].value == {"square": 1, "infinity": float("inf"), "world_size": 1}
    assert outcomes[2].value["square"] == 4 and outcomes[2].error is None
    assert outcomes[1].error == "RuntimeError: 3 is not for squaring" and "in trial" in outcomes[1].traceback
    assert outcomes[3].error.startswith("its process died") and outcomes[3].value is None
    assert "Traceback" not in "".join(capfd.readouterr())  # Ray's own noise stays out of sight
    assert_nothing_is_held()


def test_a_sweep_of_worker_groups_does_not_block_itself(ray_session, tmp_path):
    payloads = [{"name": "good", "scale": 1.0}, {"name": "bad"}]  # two groups of 2 on 2 CPUs: one after the other
    good, bad = run_trials(sum_of_ranks, payloads, group(count=2), tmp_path, concurrent=2)
    assert good.value["total"] == 3.0 and good.value["world_size"] == 2
    assert bad.error == "KeyError: 'scale'" and bad.value is None
    assert_nothing_is_held()


def test_too_few_resources_are_refused_in_one_line(ray_session, tmp_path):
    from nnce_dist.on_ray.resources import TooLargeError
    from nnce_dist.on_ray.train import run_on_workers

    with pytest.raises(TooLargeError, match=r"asked for 3 x \(1 CPUs, 0 GPUs\), the cluster has 2 CPUs and 0 GPUs"):
        run_on_workers(sum_of_ranks, {"scale": 1}, group(count=3), tmp_path)
    with pytest.raises(TooLargeError, match=r"asked for 1 x \(1 CPUs, 1 GPUs\)"):
        run_trials(trial, [{"name": "a", "number": 1}], group(gpus=1), tmp_path)


SWEEP_WITHOUT_MEMORY = """
import sys, test_on_ray
from nnce_dist.on_ray.environment import session
with session(num_cpus=1):
    payload = {"name": "a", "directory": sys.argv[1], "signals": [0]}
    (outcome,) = test_on_ray.run_trials(
        test_on_ray.hit_at_each_start, [payload], test_on_ray.group(restarts=1), sys.argv[1],
        on_restart=test_on_ray.note_restart,
    )
    print("outcome:", outcome.error)
"""


def test_a_lack_of_host_memory_is_named_as_such(tmp_path):
    command = [sys.executable, "-c", SWEEP_WITHOUT_MEMORY, str(tmp_path)]
    with processes.ray_environment() as settings:
        settings["RAY_memory_usage_threshold"] = "0.001"  # Ray's monitor finds every machine above it
        done = subprocess.run(command, env=processes.outside() | settings, capture_output=True, text=True, timeout=150)
    said = done.stdout + done.stderr
    assert "the machine ran out of memory and Ray ended this process; use fewer workers per machine" in said
    assert restarts({"name": "a", "directory": str(tmp_path)})[0][0] == "host_memory"


def test_keys_of_the_environment_are_in_no_file_of_ray(ray_session, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "canary-of-the-keys")
    run_trials(trial, [{"name": "a", "number": 1}], group(), tmp_path)
    files = [path for path in ray_session.rglob("*") if path.is_file()]
    assert any(path.name == "runtime_env_agent.log" for path in files)
    assert not [path for path in files if b"canary-of-the-keys" in path.read_bytes()]


SWEEP_THAT_NEVER_ENDS = """
import sys, test_on_ray
from nnce_dist.on_ray.environment import session
with session(num_cpus=1, grace=0.1):
    payloads = [{"name": "a", "mark": sys.argv[1]}]
    test_on_ray.run_trials(test_on_ray.never_end, payloads, test_on_ray.group(), sys.argv[2])
"""


def test_a_signal_ends_the_driver_and_everything_it_started(tmp_path):
    mark = tmp_path / "mark"
    with processes.ray_environment() as settings:
        settings["TMPDIR"] = settings["RAY_TMPDIR"]
        command = [sys.executable, "-c", SWEEP_THAT_NEVER_ENDS, str(mark), str(tmp_path)]
        driver = subprocess.Popen(command, env=processes.outside() | settings, stderr=subprocess.PIPE, text=True)
        processes.wait_until(lambda: mark.exists() or driver.poll() is not None, 120, "the trial's start")
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=30)
        processes.wait_until(lambda: not processes.marked(settings[processes.MARK]), 10, "the end of all processes")
        assert {path.name for path in Path(settings["RAY_TMPDIR"]).iterdir()} == {"ray", "token"}  # Ray's logs
    assert driver.returncode == 128 + signal.SIGTERM, said
    first, last = said.splitlines()
    assert first.startswith("stopping: ") and last.startswith("not all was saved in time; the same command continues")


def test_the_token_is_private(ray_session):
    assert (ray_session / "token").stat().st_mode & 0o777 == 0o600


def test_a_node_that_has_gone_is_not_asked_for_its_versions(ray_session, monkeypatch):
    import ray

    from nnce_dist.on_ray.versions import differences

    gone = {"Alive": True, "NodeManagerAddress": "127.0.0.9", "NodeID": "a1" * 28}
    nodes = [*ray.nodes(), gone]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert differences() is None
