"""python -m pytest tests/integration/test_search_on_ray.py

A sweep on Ray that is killed in its trials, its driver and its head ends, with the same command, as one that was not.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import processes
import pytest

from nnce_dist.sweep.history import History

pytestmark = [pytest.mark.slow, pytest.mark.ray]
REPOSITORY = Path(__file__).parents[2]
LENGTH = [
    "density_ratio.training.samples=30720",
    "density_ratio.training.log_every=1600",
    "density_ratio.training.checkpoint_every=1600",
]
SWEEP = [
    *("sweep.strategy=asha", "sweep.trials=6", "sweep.reduction=2", "sweep.interval=7680", "sweep.seeds=[]"),
    "sweep.space.objective.noise_magnitude=loguniform(1,1e4)",
    "sweep.space.density_ratio.optimiser.lr=loguniform(1e-3,1)",
]
LINE = [sys.executable, "pipelines/density_ratio.py", "preset=density-ratio-smoke", *LENGTH, *SWEEP]


def start(folder: Path, settings: dict[str, str], *words: str) -> subprocess.Popen:
    """The sweep, started; what it says goes to a file."""
    folder.mkdir(exist_ok=True)
    with open(folder / "said", "a") as said:
        environment = processes.outside() | {"OMP_NUM_THREADS": "1"} | settings
        line = [*LINE, f"run.dir={folder}", *words]
        return subprocess.Popen(line, cwd=REPOSITORY, env=environment, stdout=said, stderr=subprocess.STDOUT)


def finish(driver: subprocess.Popen, folder: Path, seconds: float = 240) -> None:
    try:
        code = driver.wait(timeout=seconds)
    finally:
        driver.kill()
    assert code == 0, (folder / "said").read_text()[-3000:]


def history(folder: Path) -> dict:
    return dict(History(folder / "density-ratio-smoke" / "sweep.jsonl"))


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.rglob("weights.safetensors")}


def ended(folder: Path, number: int, driver: subprocess.Popen) -> None:
    """Waits until so many segments have an outcome."""
    processes.wait_until(lambda: len(history(folder)) >= number or driver.poll() is not None, 120, f"{number} segments")
    assert driver.poll() is None, (folder / "said").read_text()[-3000:]


def trials(mark: str) -> list[int]:
    """The processes of a cluster, or of a node, that train a trial now."""
    return [pid for pid in processes.marked(mark) if b"Trainable.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the sweep that nobody disturbs, run without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, {}, "workers.runtime=local"), folder)
    assert len({trial for trial, samples in history(folder) if samples == 30720}) in (1, 2)
    return folder


def test_killed_in_its_trials_and_its_driver_a_sweep_ends_as_one_that_was_not(whole, tmp_path):
    draw = random.Random(2)
    with processes.ray_environment() as settings:
        mark = settings[processes.MARK]
        first = start(tmp_path, settings)
        ended(tmp_path, 1, first)
        processes.wait_until(lambda: trials(mark), 60, "a trial")
        os.kill(draw.choice(trials(mark)), signal.SIGKILL)
        ended(tmp_path, 3, first)
        time.sleep(draw.uniform(0, 1))
        first.kill()
        first.wait(timeout=10)
        before = history(tmp_path)
        finish(start(tmp_path, settings), tmp_path)
        processes.end(mark)  # some of the first Ray's own look for its head for a minute
    assert before.items() <= history(tmp_path).items() and history(tmp_path) == history(whole)
    assert weights(tmp_path) == weights(whole)
    assert (tmp_path / "density-ratio-smoke/metrics.jsonl").read_text().count("restarts/worker_died") == 1


def test_one_command_uses_a_node_that_joins_and_goes_on_when_the_head_was_lost(whole, tmp_path):
    with processes.ray_environment() as settings, closing(processes.Cluster(settings)) as cluster:
        head = cluster.start_head(num_cpus=1)
        first = start(tmp_path, cluster.driver | {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"})  # a minute otherwise
        processes.wait_until(lambda: trials(head) or first.poll() is not None, 120, "the first trial")
        (waiting,) = trials(head)
        os.kill(waiting, signal.SIGSTOP)  # or else the sweep may be over before the node is there
        node = cluster.add_node(num_cpus=1)
        processes.wait_until(lambda: trials(node), 120, "a trial on the node that has joined")
        os.kill(waiting, signal.SIGCONT)
        ended(tmp_path, 2, first)
        cluster.close()  # head, node and all that ran there
        assert first.wait(timeout=120) != 0
        cluster.start_head(num_cpus=2)
        finish(start(tmp_path, cluster.driver), tmp_path)
    assert history(tmp_path) == history(whole) and weights(tmp_path) == weights(whole)
