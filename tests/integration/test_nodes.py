"""python -m pytest tests/integration/test_nodes.py

A run on two nodes, one of which is taken away: by its owner with notice, or at once.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from safetensors.torch import load_file
from small_run import REPOSITORY, SETTINGS, assert_equal_to_rounding
from test_search_on_ray import SWEEP, finish, here, history, start, trials, weights
from test_stopping import steps

pytestmark = [pytest.mark.slow, pytest.mark.ray]
DRIVER = """
import sys
from pathlib import Path
import ray
from nnce_dist.config.load import load
from nnce_dist.on_ray.environment import session
from nnce_dist.stages.folder import run_root
from nnce_dist.stages.trials import payload
import test_nodes, test_on_ray
with session():
    from nnce_dist.on_ray.train import run_on_workers
    test_nodes.processes.wait_until(test_nodes.two_cpus, 60, "two nodes")
    config = load(sys.argv[1:], Path("pipelines/presets"), "smoke")
    job = payload(config, run_root(config), "teacher", "teacher") | {"directory": config.run.dir}
    run_on_workers(test_nodes.run_and_tell, job, config.workers, run_root(config), test_on_ray.note_restart)
"""


TRIALS = """
import sys, test_nodes, test_on_ray
from nnce_dist.on_ray.environment import session
with session():
    test_nodes.processes.wait_until(test_nodes.two_cpus, 60, "two nodes")
    payloads = [{"name": name, "directory": sys.argv[1]} for name in ("a", "b")]
    outcomes = test_on_ray.run_trials(
        test_nodes.tell_where, payloads, test_on_ray.group(restarts=0), sys.argv[1], on_restart=test_on_ray.note_restart
    )
    print(sorted(outcome.value or outcome.error for outcome in outcomes))
"""
TAKEN = "127.0.0.3"


def tell_where(payload, runtime):
    """The nodes that the trial has been on: waits for the notice on the one that is taken, for its start elsewhere."""
    import ray

    from nnce_dist.training.runtime import stop_if_asked

    told, node = Path(payload["directory"]) / payload["name"], ray.util.get_node_ip_address()
    with told.open("a") as file:
        file.write(f"{node} ")
    while node == TAKEN or not any(TAKEN in path.read_text() for path in told.parent.glob("[ab]")):
        stop_if_asked(runtime, "the notice")
        time.sleep(0.2)
    return told.read_text().split()


def two_cpus():
    """Whether two nodes of one CPU each are there; one that was drained has none to give, and is gone soon."""
    import ray

    return [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]] == [1, 1]


def run_and_tell(payload, runtime):
    """The job, slow until there were two workers and on them; tells of every group how many workers it has."""
    from nnce_dist.stages.jobs import run_job

    directory, ask = Path(payload["directory"]), runtime.stop_signal

    def slow_stop_signal():
        time.sleep(0.2 if runtime.world_size == 2 else 0 if "2" in groups(directory) else 1)
        return ask()

    runtime.stop_signal = slow_stop_signal
    if runtime.rank == 0:
        with (directory / "groups").open("a") as file:
            file.write(f"{runtime.world_size} ")
    return run_job(payload, runtime)


def groups(directory):
    """How many workers each group has had."""
    told = directory / "groups"
    return told.read_text().split() if told.exists() else []


@pytest.fixture
def cluster():
    """A head with one CPU, new for each test: Ray Train takes up to a minute to see which nodes came or went."""
    with processes.ray_cluster(num_cpus=1) as cluster:
        yield cluster


def drain(cluster, node):
    """Tells Ray that the node will be taken away in two minutes."""
    cluster.drain(seconds=120)


def lose(cluster, node):
    """The node is gone."""
    cluster.kill(node)


@pytest.mark.parametrize("take", [drain, lose])
def test_training_goes_on_with_the_nodes_that_stay(cluster, uninterrupted, tmp_path, take):
    node = cluster.add_node(num_cpus=1)
    words = [*SETTINGS, f"run.dir={tmp_path}", "workers.count=2", "workers.min=1"]
    line = [sys.executable, "-c", DRIVER, *words]
    driver = subprocess.Popen(
        line, cwd=REPOSITORY, env=processes.outside() | cluster.driver, stderr=subprocess.PIPE, text=True
    )
    records = tmp_path / "smoke" / "teacher" / "metrics.jsonl"
    processes.wait_until(lambda: driver.poll() is not None or "2" in groups(tmp_path), 200, "a group of two")
    begin = steps(records)
    processes.wait_until(lambda: driver.poll() is not None or steps(records) > begin + 9, 60, "some steps on two nodes")
    take(cluster, node)
    _, said = driver.communicate(timeout=300)
    if take is drain:
        cluster.kill(node)  # as its owner does in the end
    assert driver.returncode == 0, said
    assert "2" in groups(tmp_path) and groups(tmp_path)[-1] == "1"
    restarts = tmp_path / "teacher-restarts"  # a notice is no failure
    causes = ("worker_died", "connection_lost")
    assert not restarts.exists() if take is drain else restarts.read_text().startswith(causes)
    weights = load_file(tmp_path / "smoke" / "teacher" / "weights.safetensors")
    assert_equal_to_rounding(weights, uninterrupted)


def test_a_trial_leaves_a_node_that_will_be_taken_away_and_that_is_no_failure(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    line = [sys.executable, "-c", TRIALS, str(tmp_path)]
    environment = processes.outside() | cluster.driver
    driver = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    there = lambda: any(TAKEN in path.read_text() for path in tmp_path.glob("[ab]"))  # noqa: E731
    processes.wait_until(lambda: driver.poll() is not None or there(), 60, "a trial on the node")
    cluster.drain(seconds=120)
    said = driver.communicate(timeout=100)
    cluster.kill(node)  # as its owner does in the end
    assert driver.returncode == 0, said
    assert said[0].strip() == "[['127.0.0.2'], ['127.0.0.3', '127.0.0.2']]", said
    assert not list(tmp_path.glob("*-restarts"))


def stop_one(node):
    """Whether a trial was on the node; it stands still now, or it might be over before the node is lost."""
    for pid in trials(node)[:1]:
        os.kill(pid, signal.SIGSTOP)
        return True
    return False


def test_a_trial_of_a_sweep_whose_node_is_lost_goes_on_elsewhere_and_no_other_is_disturbed(cluster, tmp_path):
    whole, disturbed = here(tmp_path / "whole", SWEEP), tmp_path / "disturbed"
    node = cluster.add_node(num_cpus=1)
    driver = start(disturbed, cluster.driver)
    processes.wait_until(lambda: stop_one(node) or driver.poll() is not None, 120, "a trial on the node")
    cluster.kill(node)
    finish(driver, disturbed)
    assert history(disturbed) == history(whole) and weights(disturbed) == weights(whole)
    assert (disturbed / "density-ratio-smoke/metrics.jsonl").read_text().count("restarts/") == 1
