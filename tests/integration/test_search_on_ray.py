"""python -m pytest tests/integration/test_search_on_ray.py

A sweep on Ray that is killed in its trials, its driver and its head ends, with the same command, as one that was not.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import processes
import pytest

from nnce_dist.config.load import load
from nnce_dist.stages import search
from nnce_dist.stages.folder import run_root
from nnce_dist.stages.launch import LocalLauncher
from nnce_dist.sweep.history import History
from nnce_dist.training.checkpoint import committed, position

pytestmark = [pytest.mark.slow, pytest.mark.ray]
REPOSITORY = Path(__file__).parents[2]
LENGTH = [
    "density_ratio.training.samples=30720",
    "density_ratio.training.log_every=1600",
    "density_ratio.training.checkpoint_every=1600",
]
SPACE = [
    "sweep.seeds=[]",
    "sweep.per_process=1",
    "sweep.space.objective.noise_magnitude=loguniform(1,1e4)",
    "sweep.space.density_ratio.optimiser.lr=loguniform(1e-3,1)",
]
SWEEP = [*LENGTH, "sweep.strategy=asha", "sweep.trials=6", "sweep.reduction=2", "sweep.interval=7680"]
WANTED = """
import ray
from ray.experimental.internal_kv import _internal_kv_get
ray.init(logging_level="ERROR")
print(_internal_kv_get("autoscaler_resource_request"))
"""
LINE = [sys.executable, "pipelines/density_ratio.py", "preset=density-ratio-smoke", *SPACE]


def start(folder: Path, settings: dict[str, str], *words: str, sweep: list[str] = SWEEP) -> subprocess.Popen:
    """The sweep, started; what it says goes to a file."""
    folder.mkdir(exist_ok=True)
    with open(folder / "said", "a") as said:
        environment = processes.outside() | {"OMP_NUM_THREADS": "1"} | settings
        line = [*LINE, *sweep, f"run.dir={folder}", *words]
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
    return [pid for pid in processes.marked(mark) if "Trainable.train" in processes.command_line(pid)]


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


# ---- packs -----------------------------------------------------------------------------------------------------------

PACKED = [*SWEEP, "sweep.per_process=3", "density_ratio.network=mlp", "density_ratio.width=8"]


def caught(folder: Path, driver: subprocess.Popen) -> bool:
    """Whether a pack has a checkpoint of the middle of its segment now; then the driver stays where it is."""
    driver.send_signal(signal.SIGSTOP)  # or the segment might be over before the driver is killed
    for pack in (folder / "density-ratio-smoke" / "packs").glob("*"):
        end = int(re.search(r"-to-(\d+)-", pack.name)[1])
        if any(position(checkpoint) < end for checkpoint in committed(pack / "checkpoints")):
            return True
    driver.send_signal(signal.SIGCONT)
    return False


def kill_in_a_pack(folder: Path, driver: subprocess.Popen) -> None:
    """Kills the driver in the middle of a pack's segment, once one other pack has ended."""
    ended(folder, 3, driver)
    processes.wait_until(lambda: driver.poll() is not None or caught(folder, driver), 60, "a pack", poll=0.02)
    assert driver.poll() is None, (folder / "said").read_text()[-3000:]
    driver.kill()
    driver.wait(timeout=10)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder of a sweep in packs that nobody disturbs, run without Ray."""
    folder = tmp_path_factory.mktemp("packed")
    finish(start(folder, {}, "workers.runtime=local", sweep=PACKED), folder)
    return folder


def test_a_packed_sweep_whose_driver_is_killed_in_a_segment_ends_as_one_that_was_not(packed, tmp_path):
    first = start(tmp_path, {}, "workers.runtime=local", sweep=PACKED)
    kill_in_a_pack(tmp_path, first)
    before = history(tmp_path)
    finish(start(tmp_path, {}, "workers.runtime=local", sweep=PACKED), tmp_path)
    assert before.items() < history(tmp_path).items() and history(tmp_path) == history(packed)
    assert weights(tmp_path) == weights(packed)
    told = [path.read_text() for path in tmp_path.rglob("trial-*/metrics.jsonl")]
    assert any("continuing at" in log and "/packs/" in log for log in told)


def test_a_packed_sweep_on_ray_loses_a_process_and_its_driver_and_ends_as_one_that_did_not(packed, tmp_path):
    with processes.ray_environment() as settings:
        mark = settings[processes.MARK]
        first = start(tmp_path, settings, sweep=PACKED)
        processes.wait_until(lambda: trials(mark), 120, "a pack")
        os.kill(trials(mark)[0], signal.SIGKILL)
        kill_in_a_pack(tmp_path, first)
        finish(start(tmp_path, settings, sweep=PACKED), tmp_path)
        processes.end(mark)
    assert history(tmp_path) == history(packed) and weights(tmp_path) == weights(packed)
    assert (tmp_path / "density-ratio-smoke/metrics.jsonl").read_text().count("restarts/worker_died") == 1


# ---- other strategies, and groups of workers, on one cluster ---------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A head with two CPUs, which outlives the drivers that are killed; its mark is `head`."""
    with processes.ray_environment() as settings, closing(processes.Cluster(settings)) as cluster:
        cluster.head = cluster.start_head(num_cpus=2)
        yield cluster


def here(folder: Path, sweep: list[str]) -> Path:
    """The folder of a sweep that nobody disturbs, run in this process."""
    words = [*SPACE, *sweep, f"run.dir={folder}"]
    config = load(words, REPOSITORY / "pipelines" / "presets", "density-ratio-smoke")
    run_root(config).mkdir(parents=True)
    search.run(config, run_root(config), LocalLauncher(config, 0, None), None, lambda line: None)
    return folder


SHORT = [f"density_ratio.training.{what}" for what in ("samples=9600", "log_every=320", "checkpoint_every=320")]
OTHERS = {
    "pbt": [*SHORT, "sweep.strategy=pbt", "sweep.trials=4", "sweep.interval=3200"],
    "tpe": [*SHORT, "sweep.strategy=tpe", "sweep.trials=6", "sweep.batch=3"],
}


@pytest.mark.parametrize("strategy", OTHERS)
def test_killed_in_a_trial_and_the_driver_other_strategies_decide_as_if_they_were_not(cluster, tmp_path, strategy):
    pytest.importorskip("optuna") if strategy == "tpe" else None
    sweep, draw = OTHERS[strategy], random.Random(3)
    whole = here(tmp_path / "whole", sweep)
    disturbed = tmp_path / "disturbed"
    first = start(disturbed, cluster.driver, sweep=sweep)
    ended(disturbed, 1, first)
    processes.wait_until(lambda: trials(cluster.head), 60, "a trial")
    os.kill(draw.choice(trials(cluster.head)), signal.SIGKILL)
    ended(disturbed, len(history(whole)) // 2, first)
    time.sleep(draw.uniform(0, 0.5))
    first.kill()
    first.wait(timeout=10)
    before = history(disturbed)
    assert before.items() < history(whole).items()  # it was not over
    finish(start(disturbed, cluster.driver, sweep=sweep), disturbed)
    assert history(disturbed) == history(whole) and weights(disturbed) == weights(whole)
    assert (disturbed / "density-ratio-smoke/metrics.jsonl").read_text().count("restarts/worker_died") == 1
    copies = [one for one in history(disturbed).values() if one.source is not None]
    assert bool(copies) is (strategy == "pbt")


STACKED = ["sweep.per_process=2", "density_ratio.network=mlp", "density_ratio.width=8"]
IN_TURNS = [*STACKED, "density_ratio.training.max_skipped_steps=1"]


@pytest.mark.parametrize("words", [[], STACKED, IN_TURNS], ids=["alone", "stacked", "in turns"])
def test_halving_of_worker_groups_decides_as_that_of_single_ones(cluster, tmp_path, words):
    halving = ["sweep.strategy=asha", "sweep.trials=2", "sweep.reduction=2", "sweep.interval=4800"]
    sweep = [*SHORT, *halving, *words]
    alone = history(here(tmp_path / "whole", sweep))
    groups = tmp_path / "groups"
    finish(start(groups, cluster.driver, "workers.count=2", sweep=sweep), groups)
    assert list(history(groups)) == list(alone) and len(alone) == 3  # one of the two was stopped
    for segment, outcome in history(groups).items():
        assert outcome.value == pytest.approx(alone[segment].value, rel=1e-3)
    assert bool(list(groups.glob("*/packs"))) is bool(words)
    assert len(weights(groups)) == 1 and "started again" not in (groups / "said").read_text()


def test_gpus_that_no_node_has_are_refused_before_anything_starts(cluster, tmp_path):
    driver = start(tmp_path, cluster.driver, "workers.gpus=2", "workers.start_timeout=1")
    assert driver.wait(timeout=120) == 2
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last.startswith(
        "error: workers: asked for 1 x (1 CPUs, 2 GPUs), the cluster has 2 CPUs and 0 GPUs on 1 node"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


def test_a_run_that_is_stopped_while_it_waits_for_nodes_wants_none_any_more(cluster, tmp_path):
    driver, said = start(tmp_path, cluster.driver, "workers.cpus=3"), tmp_path / "said"
    processes.wait_until(lambda: "waiting for nodes" in said.read_text(), 120, "the wait")
    time.sleep(1)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=30) == 130
    last = said.read_text().splitlines()[-1]
    assert last == "stopping: nothing has begun, so there is nothing to save"
    command, environment = [sys.executable, "-c", WANTED], processes.outside() | cluster.driver
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "b'[]'", done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["said"]
