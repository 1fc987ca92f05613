"""The figures of one sampler: several independent draws of images against the statistics of the data.

Every figure's name says its features and number of images: `fd_shapes@2k`, `recall_inception@50k`, `class_accuracy@2k`.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnce_dist.config.schema import Evaluation
from nnce_dist.samplers.divergence import DivergedError

from .features import FeatureNetwork, to_uint8
from .frechet import Moments, frechet_distance, kernel_distance, manifold_radii, precision_recall

logger = logging.getLogger(__name__)

REFERENCE_ROWS = 10_000  # features kept for kernel distance, precision and recall
KERNEL_SUBSETS = {"inception": (100, 1000), "shapes": (10, 1000)}  # number and size; the first as published (KID)

DrawImages = Callable[[int, range], Tensor]  # draw number, image ids -> images (B, 3, H, W), in [-1, 1] or 8-bit
Labels = Callable[[range], Tensor]  # image ids -> the classes asked for (B,)


@dataclass(frozen=True)
class Reference:
    """Statistics of the data in one feature space."""

    name: str  # "<features>-<digests>": what the statistics are of
    moments: Moments  # of every image
    rows: Tensor  # (N, d) float32, features of the first images


def reference(images: Iterable[Tensor], features: FeatureNetwork, cache_dir: Path, digest: str) -> Reference:
    """Statistics of `images`, batches (B, 3, H, W); read from `cache_dir` if they were made before from the same data.

    `digest` names the data; the feature network's own digest is added, so neither can be mistaken for another.
    """
    name = f"{features.name}-{features.digest[:12]}-{digest[:12]}"
    path = Path(cache_dir) / f"reference-{name}.safetensors"
    cached = _load(path, name) if path.exists() else None
    if cached is None:
        cached = _measure(images, features, name)
        _save(path, cached)
    return cached


def _measure(images: Iterable[Tensor], features: FeatureNetwork, name: str) -> Reference:
    moments, rows, kept = Moments.empty(features.dim), [], 0
    for batch in images:
        found = features(to_uint8(batch)).cpu()
        moments.add(found)
        rows.append(found[: REFERENCE_ROWS - kept])
        kept += len(rows[-1])
    if moments.count < 2:
        raise ValueError(f"reference statistics: the data gave {int(moments.count)} images; at least 2 are needed")
    return Reference(name, moments, torch.cat(rows))


def _save(path: Path, statistics: Reference) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({**statistics.moments.state(), "rows": statistics.rows}, temporary, metadata={"name": statistics.name})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _load(path: Path, name: str) -> Reference | None:
    """The statistics in a cache file; None, with a warning, when it cannot be read or holds others."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("name") != name:
                raise ValueError("it holds statistics of other data or features")
            tensors = {key: file.get_tensor(key) for key in ("count", "total", "outer", "rows")}
    except (SafetensorError, ValueError) as error:
        logger.warning("%s cannot be used (%s); computing the reference statistics again", path, error)
        return None
    return Reference(name, Moments(*(tensors[key] for key in ("count", "total", "outer"))), tensors["rows"])


def count_name(num_samples: int) -> str:
    """How a number of images is written in a figure's name: 500, 2k (2048), 50k."""
    return str(num_samples) if num_samples < 1000 else f"{num_samples // 1000}k"


@torch.inference_mode()
def evaluate(
    draw_images: DrawImages,
    statistics: Reference,
    features: FeatureNetwork,
    settings: Evaluation,
    labels: Labels | None = None,
) -> dict[str, list[float]]:
    """Figures by name, one value per draw (draw i of two samplers that share their noise can be compared in pairs).

    fd, kd, precision and recall; class accuracy too where `labels` are given and the features can classify. Raises
    ValueError when the sampler returns another number of images than asked for, DivergedError for values that are not
    finite.
    """
    radii = manifold_radii(statistics.rows, settings.neighbours)
    draws = [
        _figures(draw, draw_images, statistics, radii, features, settings, labels) for draw in range(settings.draws)
    ]
    return {name: [figures[name] for figures in draws] for name in draws[0]}


def _figures(
    draw: int,
    draw_images: DrawImages,
    statistics: Reference,
    radii: Tensor,
    features: FeatureNetwork,
    settings: Evaluation,
    labels: Labels | None,
) -> dict[str, float]:
    moments, rows, right = _measure_draw(draw, draw_images, features, settings, labels)
    precision, recall = precision_recall(statistics.rows, rows, settings.neighbours, real_radii=radii)
    measured = {
        "fd": frechet_distance(moments, statistics.moments),
        "kd": kernel_distance(rows, statistics.rows, *KERNEL_SUBSETS[features.name], seed=draw),
        "precision": precision,
        "recall": recall,
    }
    count = count_name(settings.num_samples)
    named = {f"{metric}_{features.name}@{count}": value for metric, value in measured.items()}
    return named if right is None else {**named, f"class_accuracy@{count}": right / settings.num_samples}


def _measure_draw(
    draw: int, draw_images: DrawImages, features: FeatureNetwork, settings: Evaluation, labels: Labels | None
) -> tuple[Moments, Tensor, int | None]:
    """Moments and features (N, d) of one draw, and how many images show the class asked for (None: not known)."""
    moments, rows = Moments.empty(features.dim), []
    right = 0 if labels is not None and hasattr(features, "classes") else None
    for start in range(0, settings.num_samples, settings.batch):
        ids = range(start, min(start + settings.batch, settings.num_samples))
        found = features(to_uint8(_checked(draw_images(draw, ids), draw, ids)))
        rows.append(found.cpu())
        moments.add(rows[-1])
        if right is not None:
            right += int((features.classes(found).cpu() == labels(ids)).sum())
    return moments, torch.cat(rows), right


def _checked(images: Tensor, draw: int, ids: range) -> Tensor:
    """The images as they are; ValueError when they cannot be measured."""
    where = f"draw {draw}, images {ids.start} to {ids.stop - 1}"
    if len(images) != len(ids) or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"{where}: the sampler returned shape {tuple(images.shape)}, not ({len(ids)}, 3, H, W)")
    if images.is_floating_point() and not images.isfinite().all():
        bad = int((~images.isfinite()).flatten(1).any(1).sum())
        raise DivergedError(f"{where}: {bad} images are not finite; the sampler has diverged")
    return images
