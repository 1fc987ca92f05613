"""A run's results as a report gets them: plausible figures, none of them measured; for the tests of the report only."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nnce_dist.data import synthetic
from nnce_dist.report.data import Curve, ReportData, SamplerResult, describe_magnitude
from nnce_dist.report.grids import save_grid
from nnce_dist.stages.train_features import blur

FD, ACCURACY = "fd_shapes@2k", "class_accuracy@2k"
MAGNITUDES = (1.0, 10.0, 100.0, 1000.0, math.inf)
TUNED_FD = {1.0: 9.8, 10.0: 8.3, 100.0: 7.4, 1000.0: 7.7, math.inf: 8.9}
HELD_FD = {1.0: 8.0, 10.0: 7.6}


def figures(fd: float, accuracy: float, seed: int, count: str = "2k", draws: int = 3) -> dict[str, list[float]]:
    """Three draws around a Frechet distance and an accuracy; draw i of every sampler is off by the same amount."""
    shared, own = np.random.default_rng(0).normal(size=draws), np.random.default_rng(seed).normal(size=draws)
    offset = 0.02 * fd * (shared + 0.3 * own)
    return {
        f"fd_shapes@{count}": list(fd + offset),
        f"kd_shapes@{count}": list(0.011 * fd + 0.01 * offset),
        f"precision_shapes@{count}": list(0.95 - 0.02 * fd**0.5 + 0.003 * own),
        f"recall_shapes@{count}": list(0.97 - 0.03 * fd**0.5 + 0.003 * shared),
        f"class_accuracy@{count}": list(np.clip(accuracy + 0.004 * own, 0, 1)),
    }


def rows() -> list[SamplerResult]:
    """Every kind of row, without pictures."""

    def named(magnitude: float) -> str:
        kind = {1.0: " (NCE)", math.inf: " (NWJ)"}.get(magnitude, "")
        return f"10-step tuned, M = {describe_magnitude(magnitude)}{kind}"

    return [
        SamplerResult("Held-out data", "data", figures(0.6, 0.999, 1, "1k", draws=1)),
        SamplerResult("Teacher, Heun 18 steps", "teacher", figures(3.1, 0.962, 2), 35),
        SamplerResult("Untuned 10-step", "untuned", figures(14.9, 0.871, 3), 10),
        SamplerResult("Euler, 10 steps", "baseline", figures(11.2, 0.903, 4), 10),
        SamplerResult("Heun, 5 steps", "baseline", figures(24.6, 0.842, 5), 9),
        SamplerResult("10-step, zero energy", "control", figures(10.4, 0.904, 6), 10),
        *[SamplerResult(named(m), "tuned", figures(TUNED_FD[m], 0.93, 7 + i), 10, m) for i, m in enumerate(MAGNITUDES)],
        *[
            SamplerResult(f"10-step tuned, M = {m:g}, held", "tuned", figures(HELD_FD[m], 0.932, 20 + i), 10, m, True)
            for i, m in enumerate(HELD_FD)
        ],
        SamplerResult("One-step", "one_step", figures(5.2, 0.948, 30), 1),
    ]  # fmt: skip


def with_grids(table: list[SamplerResult], folder: Path) -> list[SamplerResult]:
    """The rows that a report shows samples of, with made pictures the blurrier the larger the distance."""
    images = torch.from_numpy(synthetic.make(range(64), 5)[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    shown = []
    for row in table:
        fd = next(values[0] for name, values in row.figures.items() if name.startswith("fd_"))
        path = folder / f"{row.name}.png".replace(" ", "_").replace(",", "")
        if row.group != "tuned" or row.noise_magnitude == 100:
            save_grid(blur(images, torch.full((64,), fd / 6)), path)
            row = replace(row, grid=path)
        shown.append(row)
    return shown


def curves() -> list[Curve]:
    """Training curves of every stage."""
    samples = np.arange(1, 41) * 512
    shape, noise = np.exp(-samples / 6000), np.random.default_rng(1).normal(size=(9, 40))

    def records(**metrics: np.ndarray) -> list[dict]:
        return [
            {"samples_seen": int(n), **{k.replace("__", "/"): float(v[i]) for k, v in metrics.items()}}
            for i, n in enumerate(samples)
        ]

    def tuning(index: int, magnitude: float) -> list[dict]:
        gap = 0.8 * shape * math.log10(10 * min(magnitude, 1e4)) ** 0.5
        ratio = np.exp(-0.5 * gap)
        return records(
            value__loss=1.2 + 0.3 * gap + 0.03 * noise[index],
            sampler__loss=2 - gap + 0.05 * noise[index],
            value__log_ratio_data=0.4 * gap + 0.02 * noise[index],
            value__log_ratio_noise=-0.6 * gap + 0.02 * noise[index],
            value__ratio_noise=ratio + 0.02 * noise[index],
            value__ratio_noise_squared=(ratio + 0.02 * noise[index]) ** 2 * (1 + gap),
            value__saturated_noise=0.3 * shape / magnitude if math.isfinite(magnitude) else 0 * shape,
        )

    teacher = records(denoiser__loss=0.05 + 0.3 * shape + 0.004 * noise[7])
    one_step = records(fake_score__loss=0.2 + shape + 0.02 * noise[8], generator__loss=3 * shape + 0.1 * noise[7])
    swept = [Curve(f"m{m:g}", "ten_step", tuning(i, m), m) for i, m in enumerate(MAGNITUDES)]
    held = [Curve(f"m{m:g}-held", "ten_step", tuning(5 + i, m), m, held=True) for i, m in enumerate(HELD_FD)]
    return [Curve("teacher", "teacher", teacher), *swept, *held, Curve("one_step", "one_step", one_step, 100.0)]


def example(folder: Path) -> ReportData:
    """A whole report's data; pictures go to `folder`."""
    manifest = {
        "command": "python pipelines/imagenet64.py evaluation.num_samples=2048 sweep.noise_magnitudes=[1,10,100,1000]",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "hardware": "2 cores of some processor, no GPU",
        "python": "3.11.7",
        "versions": {"nnce-dist": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
        "seed": 0,
        "total_seconds": 284.2,
        "stage_seconds": {"ten_step/m1": 31.0, "ten_step/m100": 30.2, "one_step": 52.9, "samplers/heun": 7.7},
    }
    config = "run:\n  name: imagenet64\n  seed: 0\nsweep:\n  noise_magnitudes: [1, 10, 100, 1000]\n"
    return ReportData("imagenet64", with_grids(rows(), folder), curves(), manifest, config)
