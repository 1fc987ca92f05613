"""A small training run that tests interrupt: the smoke preset's teacher in float32."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from nnce_dist.config.load import load
from nnce_dist.stages.folder import run_root
from nnce_dist.stages.jobs import run_job
from nnce_dist.stages.trials import payload
from nnce_dist.training.runtime import LocalRuntime

REPOSITORY = Path(__file__).parents[2]
SAMPLES = 1600
SETTINGS = [
    "preset=smoke",
    "run.stages=[teacher]",
    "workers.precision=float32",
    "teacher.optimiser.eps=0.001",  # gradients that are nothing but rounding must not become steps of Adam
    f"teacher.training.samples={SAMPLES}",
    "teacher.training.checkpoint_every=64",
]


def go_on_here(directory: Path) -> dict[str, torch.Tensor]:
    """The teacher's weights once the run in this directory has gone on, in this process, to its end."""
    config = load([*SETTINGS, f"run.dir={directory}"], REPOSITORY / "pipelines" / "presets", "smoke")
    root = run_root(config)
    run_job(payload(config, root, "teacher", "teacher"), LocalRuntime("cpu"))
    return load_file(root / "teacher" / "weights.safetensors")


def assert_equal_to_rounding(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal but for biases that have no effect before a normalisation: their gradient is rounding alone."""
    for name, tensor in weights.items():
        if not name.endswith("conv0.bias"):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, msg=name)
