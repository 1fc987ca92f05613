"""python -m pytest tests/integration/test_same_everywhere.py"""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nnce_dist.config.load import load
from nnce_dist.metrics import jsonl
from nnce_dist.stages.folder import job_folder, run_root
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.trials import payload
from nnce_dist.training.runtime import LocalRuntime

pytestmark = [pytest.mark.slow, pytest.mark.ray]
PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def job(directory, where, *words):
    """The teacher's job of the smoke preset in float32, in a run of its own; its payload and where its weights go.

    Some biases have no effect (before a normalisation, on attention's keys): their gradients are rounding errors, which
    Adam would blow up to whole steps. A larger epsilon leaves them where they are.
    """
    exact = ["workers.precision=float32", "teacher.optimiser.eps=0.001"]
    settings = [f"run.dir={directory}", f"run.name={where}", *exact]
    config = load(["preset=smoke", *settings, *words], PRESETS, "smoke")
    root = run_root(config)
    return payload(config, root, "teacher", "teacher"), job_folder(root, "teacher", "teacher") / "weights.safetensors"


def test_one_process_one_worker_and_two_workers_reach_the_same_parameters(ray_session, tmp_path):
    from nnce_dist.config.schema import Workers
    from nnce_dist.on_ray.train import run_on_workers

    here, weights = job(tmp_path, "here")
    run_job(here, LocalRuntime("cpu"))
    expected = load_file(weights)
    for count in (1, 2):
        there, weights = job(tmp_path, f"workers-{count}")
        run_on_workers(run_job, there, Workers(count=count, start_timeout=60), tmp_path / f"workers-{count}")
        for name, tensor in load_file(weights).items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=f"{count} workers: {name}")


def die_once(payload, runtime):
    """Runs the job; the first time, rank 1 is killed after a while in the middle of it."""
    folder = Path(payload["root"]) / "teacher"
    if runtime.rank == 1 and not (folder / "killed").exists():
        threading.Thread(target=kill_this_process, args=(folder, payload["kill_at"]), daemon=True).start()
    return run_job(payload, runtime)


def kill_this_process(folder, samples):
    while max((record.get("samples_seen", 0) for record in log(folder)), default=0) < samples:
        time.sleep(0.01)
    (folder / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def log(folder):
    return jsonl.read(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []


def curve(folder):
    """The log's positions and losses."""
    return [(record["samples_seen"], record["denoiser/loss"]) for record in log(folder) if "denoiser/loss" in record]


def test_two_workers_one_of_them_killed_end_as_two_that_were_not_to_the_bit(ray_session, tmp_path):
    from nnce_dist.config.schema import Workers
    from nnce_dist.on_ray.train import run_on_workers

    lengths = ["teacher.training.samples=800", "teacher.training.checkpoint_every=160", "network.dropout=0.1"]
    ends = {}
    for name, function in (("whole", run_job), ("killed", die_once)):
        there, weights = job(tmp_path, name, *lengths)
        workers = Workers(count=2, start_timeout=60, restarts=1)
        run_on_workers(function, there | {"kill_at": 400}, workers, tmp_path / name)
        ends[name] = weights.read_bytes(), curve(weights.parent)
    assert (tmp_path / "killed/teacher/killed").exists()
    assert ends["killed"] == ends["whole"] and len(ends["whole"][1]) == 50
