"""python -m pytest tests/integration/test_same_everywhere.py"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nnce_dist.config.load import load
from nnce_dist.stages.folder import job_folder, run_root
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.trials import payload
from nnce_dist.training.runtime import LocalRuntime

pytestmark = [pytest.mark.slow, pytest.mark.ray]
PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"


def job(directory, where):
    """The teacher's job of the smoke preset in float32, in a run of its own; its payload and where its weights go.

    Some biases have no effect (before a normalisation, on attention's keys): their gradients are rounding errors, which
    Adam would blow up to whole steps. A larger epsilon leaves them where they are.
    """
    exact = ["workers.precision=float32", "teacher.optimiser.eps=0.001"]
    settings = [f"run.dir={directory}", f"run.name={where}", *exact]
    config = load(["preset=smoke", *settings], PRESETS, "smoke")
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
