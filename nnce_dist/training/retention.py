"""Which checkpoints stay. What goes, goes after a new one is committed, never before."""

import errno
import math
import shutil
from collections.abc import Collection
from pathlib import Path

from ..config import schema
from . import checkpoint

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of a disk, a quota or a limit that is used up


def figure(path: Path) -> float:
    """The figure that `training.keep_best` compares; inf where a checkpoint has none or cannot be read."""
    try:
        value = checkpoint.read_scalars(path).get("figure")
    except (OSError, ValueError):
        return math.inf
    return value if isinstance(value, float) and math.isfinite(value) else math.inf


def kept(directory: Path, training: schema.Training) -> list[Path]:
    """The checkpoints that stay, the most important first: the newest, the best, then by age inside the budget."""
    newest_first = sorted(checkpoint.committed(directory), reverse=True)
    best = [path for path in [min(newest_first, key=figure, default=None)] if path and math.isfinite(figure(path))]
    wanted = list(dict.fromkeys([*newest_first[:1], *best, *newest_first[: training.keep_last]]))
    total, staying = 0, []
    for path in wanted:
        total += checkpoint.size(path)
        if staying and training.keep_bytes and total > training.keep_bytes:
            break
        staying.append(path)
    return staying


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
