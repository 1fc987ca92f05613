"""Which checkpoints stay. What goes, goes after a new one is committed, never before."""

import errno
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from ..config import schema
from . import checkpoint

K = TypeVar("K", Path, int)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of a disk, a quota or a limit that is used up


def figure(scalars: Mapping) -> float:
    """The figure that `training.keep_best` compares, of a checkpoint's scalars; inf where there is none."""
    value = scalars.get("figure")
    return value if isinstance(value, float) and math.isfinite(value) else math.inf


def figure_of(path: Path) -> float:
    """That of a checkpoint; inf, too, where it cannot be read."""
    try:
        return figure(checkpoint.read_scalars(path))
    except (OSError, ValueError):
        return math.inf


def best(figures: Mapping[K, float]) -> K | None:
    """Which of some checkpoints, by position or path, has the lowest figure, the newest of equals; None: none has."""
    newest_first = sorted(figures, reverse=True)
    lowest = min(newest_first, key=figures.get, default=None)
    return lowest if newest_first and math.isfinite(figures[lowest]) else None


def staying(sizes: Mapping[K, int], figures: Mapping[K, float], training: schema.Training) -> list[K]:
    """Which of some checkpoints stay, by bytes and figure of each: the newest, the best, then by age inside the budget.

    The most important come first.
    """
    newest_first = sorted(sizes, reverse=True)
    chosen = [] if (lowest := best(figures)) is None else [lowest]
    total, stay = 0, []
    for each in dict.fromkeys([*newest_first[:1], *chosen, *newest_first[: training.keep_last]]):
        total += sizes[each]
        if stay and training.keep_bytes and total > training.keep_bytes:
            break
        stay.append(each)
    return stay


def kept(directory: Path, training: schema.Training) -> list[Path]:
    """The checkpoints of a folder that stay, the newest first."""
    paths = list(checkpoint.committed(directory))
    sizes = {path: checkpoint.size(path) for path in paths}
    return staying(sizes, {path: figure_of(path) for path in paths}, training)


def drop_surplus(directory: Path, training: schema.Training, in_use: Collection[Path] = ()) -> None:
    """Removes every checkpoint that the settings do not keep and nobody is reading."""
    newest, *others = kept(directory, training)
    for path in checkpoint.committed(directory):
        if path not in (newest, *others, *in_use):
            shutil.rmtree(path)
    checkpoint.remove_damaged(directory, newest)


def make_room(directory: Path) -> None:
    """On a full disk: removes what is half-written and all checkpoints but the newest whole one."""
    checkpoint.remove_unfinished(directory)
    newest_first = sorted(checkpoint.committed(directory), reverse=True)
    whole = next((path for path in newest_first if not checkpoint.problem(path)), None)
    for path in newest_first:
        if whole and path != whole:
            shutil.rmtree(path)


def require_space(directory: Path, num_bytes: int, training: schema.Training) -> None:
    """Raises ValueError unless the disk and the budget hold the checkpoints that training will keep, and one more."""
    if 0 < training.keep_bytes < num_bytes:
        raise ValueError(
            f"training.keep_bytes={training.keep_bytes}: one checkpoint takes {num_bytes} bytes; raise it, or use 0"
        )
    directory.mkdir(parents=True, exist_ok=True)
    missing = max(training.keep_last + 1 - sum(1 for _ in checkpoint.committed(directory)), 1)
    free = shutil.disk_usage(directory).free
    if free < missing * num_bytes:
        raise ValueError(
            f"{directory}: {missing} more checkpoints of {num_bytes} bytes do not fit into the {free} bytes "
            "that are free; make room, lower training.keep_last, or choose another run.dir"
        )
