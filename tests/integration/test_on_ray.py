"""python -m pytest tests/integration/test_on_ray.py"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch

from nnce_dist.config.schema import Workers

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


def crash_once(payload, runtime):
    """Dies hard in the middle of its work the first time, and tells how often it was started."""
    starts = Path(payload["directory"]) / "starts"
    with starts.open("a") as file:
        file.write("x")
    if len(starts.read_text()) == 1:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    return len(starts.read_text())


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


@pytest.mark.parametrize("count", [1, 2])
def test_workers_reduce_over_ranks(ray_session, tmp_path, count):
    from nnce_dist.on_ray.train import run_on_workers

    value = run_on_workers(sum_of_ranks, {"scale": 0.1}, group(count=count), tmp_path)
    total = sum(0.1 * (rank + 1) for rank in range(count))
    assert value["total"] == pytest.approx(total, rel=1e-15) and value["single"] == [sum(range(count + 1))] * 3
    assert (value["world_size"], value["rank"], value["threads"]) == (count, 0, 1)
    assert not list((tmp_path / ".ray").iterdir())
    assert_nothing_is_held()


def test_a_refused_input_ends_the_group_at_once_with_its_line(ray_session, tmp_path):
    from nnce_dist.on_ray.train import run_on_workers

    start = time.monotonic()
    with pytest.raises(ValueError, match="^data.train: shard 7 is empty; write it again$"):
        run_on_workers(refuse_on_rank_1, {}, group(count=2, restarts=5), tmp_path)
    assert time.monotonic() - start < 60  # neither the collective's timeout (300 s) nor a restart
    assert_nothing_is_held()


def test_a_crashed_worker_is_started_again(ray_session, tmp_path):
    from nnce_dist.on_ray.train import run_on_workers

    assert run_on_workers(crash_once, {"directory": str(tmp_path)}, group(restarts=1), tmp_path) == 2


def test_a_sweep_gives_every_trial_its_outcome(ray_session, tmp_path, capfd):
    from nnce_dist.on_ray.sweep import run_trials

    done = []
    payloads = [{"name": f"n-{number}", "number": number} for number in (1, 3, 2, 4)]
    outcomes = run_trials(trial, payloads, group(restarts=0), tmp_path, on_done=done.append)
    assert [outcome.name for outcome in outcomes] == ["n-1", "n-3", "n-2", "n-4"]
    assert outcomes[0].value == {"square": 1, "infinity": float("inf"), "world_size": 1}
    assert outcomes[2].value["square"] == 4 and outcomes[2].error is None
    assert outcomes[1].error == "RuntimeError: 3 is not for squaring" and "in trial" in outcomes[1].traceback
    assert outcomes[3].error.startswith("the trial's process died") and outcomes[3].value is None
    assert sorted(outcome.name for outcome in done) == ["n-1", "n-2", "n-3", "n-4"]
    assert "Traceback" not in "".join(capfd.readouterr())  # Ray's own noise stays out of sight
    assert_nothing_is_held()


def test_a_sweep_of_worker_groups_does_not_block_itself(ray_session, tmp_path):
    from nnce_dist.on_ray.sweep import run_trials

    payloads = [{"name": "good", "scale": 1.0}, {"name": "bad"}]  # two groups of 2 on 2 CPUs: one after the other
    good, bad = run_trials(sum_of_ranks, payloads, group(count=2), tmp_path, concurrent=2)
    assert good.value["total"] == 3.0 and good.value["world_size"] == 2
    assert bad.error == "KeyError: 'scale'" and bad.value is None
    assert_nothing_is_held()


def test_too_few_resources_are_refused_in_one_line(ray_session, tmp_path):
    from nnce_dist.on_ray.environment import ClusterError
    from nnce_dist.on_ray.sweep import run_trials
    from nnce_dist.on_ray.train import run_on_workers

    with pytest.raises(ClusterError, match=r"asked for 3 x \(1 CPUs, 0 GPUs\), the cluster has 2 CPUs and 0 GPUs on 1"):
        run_on_workers(sum_of_ranks, {"scale": 1}, group(count=3), tmp_path)
    with pytest.raises(ClusterError, match=r"asked for 1 x \(1 CPUs, 1 GPUs\)"):
        run_trials(trial, [{"name": "a", "number": 1}], group(gpus=1), tmp_path)


SWEEP_THAT_NEVER_ENDS = """
import sys, test_on_ray
from nnce_dist.on_ray.environment import session
with session(num_cpus=1):
    from nnce_dist.on_ray.sweep import run_trials
    run_trials(test_on_ray.never_end, [{"name": "a", "mark": sys.argv[1]}], test_on_ray.group(), sys.argv[2])
"""


def test_a_signal_ends_the_driver_and_everything_it_started(tmp_path):
    mark = tmp_path / "mark"
    with processes.ray_environment() as settings:
        command = [sys.executable, "-c", SWEEP_THAT_NEVER_ENDS, str(mark), str(tmp_path)]
        driver = subprocess.Popen(command, env=os.environ | settings, stderr=subprocess.PIPE, text=True)
        processes.wait_until(lambda: mark.exists() or driver.poll() is not None, 120, "the trial's start")
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=30)
        processes.wait_until(lambda: not processes.marked(settings[processes.MARK]), 10, "the end of all processes")
    assert driver.returncode == 128 + signal.SIGTERM
    assert said.strip() == "stopping; run the same command again to continue"


def test_the_token_is_private(ray_session):
    assert (ray_session / "token").stat().st_mode & 0o777 == 0o600
