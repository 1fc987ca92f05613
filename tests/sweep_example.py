"""Sweeps over spaces as their reports get them: the real strategies on a made-up landscape; nothing is trained."""

import json
import math
import random
from pathlib import Path

from nnce_dist.config.load import load, to_yaml
from nnce_dist.config.schema import Config
from nnce_dist.metrics.jsonl import encode
from nnce_dist.stages.manifest import write_manifest
from nnce_dist.stages.search import HISTORY, name_of, strategy
from nnce_dist.sweep.history import History, Outcome
from nnce_dist.sweep.space import rounded

PRESETS = Path(__file__).parents[1] / "pipelines" / "presets"
M, LR, NETWORK = "objective.noise_magnitude", "density_ratio.optimiser.lr", "density_ratio.network"
SAMPLES, BATCH = 4096, 16
SPACE = [f"sweep.space.{M}=loguniform(1,1e4)", f"sweep.space.{LR}=loguniform(1e-3,1e-1)"]
GRID = [f"sweep.space.{M}=grid(1,10,100,1000,inf)", "sweep.seeds=[0,1,2]"]
FAILED, DIVERGED = 3, 5  # trials of every example
WORDS = {
    "random": [*SPACE, f"sweep.space.{NETWORK}=choice(linear,mlp)", "sweep.strategy=random", "sweep.trials=24"],
    "asha": [*SPACE, f"sweep.space.{NETWORK}=choice(linear,mlp)", "sweep.strategy=asha", "sweep.trials=24"],
    "pbt": [*SPACE, "sweep.strategy=pbt", "sweep.trials=8", f"sweep.interval={SAMPLES // 4}"],
    "grid": GRID,
}


def configured(kind: str, folder: Path, *more: str) -> Config:
    """The configuration of the sweep of a kind, with its run in `folder`."""
    length = [f"density_ratio.training.samples={SAMPLES}", f"density_ratio.training.batch={BATCH}"]
    words = ["preset=density-ratio-smoke", f"run.dir={folder}", f"run.name={kind}", "sweep.per_process=1"]
    return load([*words, *length, *WORDS[kind], *more], PRESETS, "density-ratio")


def landscape(point: dict, samples: int, trial: int) -> float:
    """A metric that is lowest at M = 60 and a learning rate of 0.02, falls with the samples, and is a little rough."""
    m = min(point.get(M, 60), 1e5)
    miss = 0.12 * (math.log10(m) - math.log10(60)) ** 2 + 0.2 * (math.log10(point.get(LR, 0.02)) + 1.7) ** 2
    rough = random.Random(f"{trial}/{samples}").gauss(0, 0.02)
    return rounded(0.3 + miss + 0.8 * math.exp(-samples / 1200) + rough + 0.03 * point.get("run.seed", 0))


def searched(config: Config, history: History) -> None:
    """Fills the history as the strategy asks."""
    plan = strategy(config)
    while segments := plan.segments(history):
        for one in segments[:1]:
            value = landscape(one.point, one.samples, one.trial)
            value, error = (math.inf, "") if one.trial == DIVERGED else (value, "")
            if one.trial == FAILED:
                value, error = None, "NonFiniteError: the loss of 'ratio' is not finite; lower the learning rate"
            history.add(Outcome(one.trial, one.samples, one.point, value, one.source, error))


def run(kind: str, folder: Path, *more: str) -> tuple[Config, Path, list[dict]]:
    """A run's configuration, its folder with the history and each trial's metrics, and the results of its trials."""
    config = configured(kind, folder, *more)
    root = folder / config.run.name
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(to_yaml(config))
    write_manifest(root, ["pipelines/density_ratio.py", *WORDS[kind]], [])
    history = History(root / HISTORY)
    searched(config, history)
    last = {one.trial: one for one in sorted(history.values(), key=lambda one: one.samples)}
    return config, root, [result(root, history, last[trial]) for trial in sorted(last)]


def result(root: Path, history: History, last: Outcome) -> dict:
    """What a trial with this last outcome leaves."""
    name = name_of(last.trial)
    found = {"name": name, "stage": "density_ratio", "trial": last.trial, "point": last.point}
    found |= {"samples": last.samples, "value": last.value}
    write_metrics(root / "density_ratio" / name, history, last)
    if last.error:
        return found | {"error": last.error}
    if last.samples < SAMPLES:
        return found | {"stopped": True}
    if last.value == math.inf:
        return found | {"selection": math.inf, "figures": {}, "note": "diverged", "seconds": 2.0}
    measured = {"log_ratio_error_data@64": [1.1 * last.value], "kl_error@64": [0.4 * last.value]}
    found |= {"selection": last.value, "figures": measured, "seconds": 3.25}
    (root / "density_ratio" / name / "result.json").write_text(json.dumps(found))
    return found


def write_metrics(folder: Path, history: History, last: Outcome) -> None:
    """Training curves that end where the trial did."""
    folder.mkdir(parents=True)
    m = min(last.point.get(M, 60), 1e4)
    lines = [
        {
            "samples_seen": samples,
            "ratio/loss": landscape(last.point, samples, last.trial) + 0.5,
            "ratio/log_ratio_data": (1 - math.exp(-samples / 900)) * math.log10(10 * m) ** 0.5,
            "ratio/log_ratio_noise": -(1 - math.exp(-samples / 900)) * math.log10(10 * m) ** 0.7,
        }
        for samples in range(128, last.samples + 1, 128)
    ]
    (folder / "metrics.jsonl").write_bytes(b"".join(map(encode, lines)))
