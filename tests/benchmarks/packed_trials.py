"""Sixty-four magnitudes of the density-ratio task: packed, one process a trial, and a bare loop, in one run.

Run: make bench-sweep    (python tests/benchmarks/packed_trials.py [--trials 64] [--network mlp] [--apart 4])

Every way trains the same trials (M from 1 to 1e4, one seed) on the same vectors, and measures each against the truth:
packed, by the pipeline on Ray, `trials / cores` to a process; as trials of their own, by the pipeline on Ray, whose
processes take one after the other; one process a trial, by a pipeline each, `cores` at a time; and a bare loop over
the magnitudes with torch alone, in one process: no Ray, no checkpoints, no log. Of the last two only `--apart` trials a
core are made, and their seconds a trial are multiplied.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from nnce_dist.config.load import load
from nnce_dist.config.schema import Config
from nnce_dist.ratio.objectives import n2ce
from nnce_dist.stages import build
from nnce_dist.stages.density_ratio import measured
from nnce_dist.stages.pairs import open_pairs

REPOSITORY = Path(__file__).parents[2]
PRESETS = REPOSITORY / "pipelines" / "presets"
CORES = os.cpu_count()
TIMEOUT = 3600  # seconds for one way


@dataclass(frozen=True)
class Way:
    """How long trials took in all, in wall-clock seconds, with all cores busy."""

    name: str
    trials: int
    seconds: float

    @property
    def per_trial(self) -> float:
        """Seconds of the whole machine for one trial."""
        return self.seconds / self.trials


def magnitudes(number: int) -> list[float]:
    """From 1 to 1e4, evenly in their logarithms."""
    return [round(10 ** (4 * i / max(number - 1, 1)), 4) for i in range(number)]


def pipeline(folder: str, chosen: list[float], *words: str) -> None:
    """The pipeline over some magnitudes, in a process of its own."""
    grid = f"sweep.space.objective.noise_magnitude=grid({','.join(map(str, chosen))})"
    line = [sys.executable, "pipelines/density_ratio.py", f"run.dir={folder}", "sweep.seeds=[]", grid, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(done.stderr)


def on_ray(name: str, chosen: list[float], per_process: int, settings: list[str]) -> Way:
    """One run of the pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pipeline(folder, chosen, f"sweep.per_process={per_process}", *settings)
        return Way(name, len(chosen), time.perf_counter() - start)


def processes(chosen: list[float], settings: list[str]) -> Way:
    """A process for each trial, as many at a time as there are cores."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(CORES) as pool:
        start = time.perf_counter()
        alone = ["sweep.per_process=1", "workers.runtime=local", *settings]
        list(pool.map(lambda number: pipeline(f"{folder}/{number}", [chosen[number]], *alone), range(len(chosen))))
        return Way("one process a trial", len(chosen), time.perf_counter() - start)


def bare(chosen: list[float], settings: list[str]) -> Way:
    """A loop over magnitudes that torch alone trains; one on each core would take 1/cores of its time."""
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch's compiler, once for all trials
    start = time.perf_counter()
    for m in chosen:
        train(load([f"sweep.noise_magnitudes=[{m}]", *settings], PRESETS, "density-ratio"), m)
    return Way("bare loop", len(chosen), (time.perf_counter() - start) / CORES)


def train(config: Config, m: float) -> dict:
    """What the pipeline's task does, with nothing around it."""
    settings, pairs = config.density_ratio, open_pairs(config)
    training, network = settings.training, build.log_ratio(config, pairs.dim)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.optimiser.lr)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, training.samples // training.batch)
    for batch in islice(pairs.train.batches(config.run.seed, 0, training.batch), training.samples // training.batch):
        loss_data, loss_noise = n2ce(network(batch.x[:, 0]), network(batch.x[:, 1]), m)
        optimiser.zero_grad()
        (loss_data.mean() + loss_noise.mean()).backward()
        optimiser.step()
        decay.step()
    with torch.inference_mode():
        return measured(network, pairs)


def compare(number: int, apart: int, settings: list[str]) -> list[Way]:
    """Every way, one after the other."""
    chosen = magnitudes(number)
    few = chosen[:: max(number // (apart * CORES), 1)]
    return [
        on_ray("packed", chosen, -(-number // CORES), settings),
        on_ray("trials of their own", chosen, 1, settings),
        processes(few, settings),
        bare(few, settings),
    ]


def main() -> None:
    """Prints seconds a trial and trials an hour of each way, and how many times as many packing makes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--apart", type=int, default=4)
    parser.add_argument("--network", default="linear")
    parser.add_argument("settings", nargs="*", help="of the pipeline, e.g. density_ratio.training.samples=51200")
    options = parser.parse_args()
    settings = [f"density_ratio.network={options.network}", *options.settings]
    ways = compare(options.trials, options.apart, settings)
    print(f"{options.trials} magnitudes, {' '.join(settings)}, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    print("way | trials made | seconds a trial | trials an hour | packed makes so many times as many")
    for way in ways:
        ratio = way.per_trial / ways[0].per_trial
        print(
            f"{way.name} | {way.trials} | {way.per_trial:.2f} | {3600 / way.per_trial:,.0f} | {ratio:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
