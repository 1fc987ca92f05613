"""Pictures into WebDataset shards with their index: lossless, the same bytes every time, all of a set or nothing."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import webdataset as wds

from .cache import make_once
from .images import encode_png
from .index import SUFFIX, index_shard

_NAME = "shard-%06d.tar"


def pack(images: Iterable[tuple[np.ndarray, int]], out_dir: str | Path, shard_size: int) -> str:
    """Writes (uint8 (H, W, 3), class number) pairs as shards of `shard_size` into a new folder and gives its pattern.

    The folder appears only when everything in it is written, so one that exists is complete. If it exists already, or
    another process is first, that one is kept and nothing is written. Raises ValueError for an empty set.
    """
    out_dir = Path(out_dir).absolute()
    if (pattern := packed(out_dir)) is not None:
        return pattern
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as unfinished:
        whole = Path(unfinished) / "whole"
        whole.mkdir()
        _write_shards(_samples(images), whole, shard_size)
        _publish(whole, out_dir)
    return packed(out_dir)


def packed(out_dir: str | Path) -> str | None:
    """The shard pattern of a folder that `pack` made, or None where there is none."""
    shards = sorted(Path(out_dir).absolute().glob("shard-*.tar"))
    if not shards:
        return None
    return str(shards[0].parent / f"shard-{{{0:06d}..{len(shards) - 1:06d}}}.tar")


def _samples(images: Iterable[tuple[np.ndarray, int]]) -> Iterator[dict[str, str | bytes]]:
    for number, (pixels, label) in enumerate(images):
        yield {"__key__": f"{number:08d}", "png": encode_png(pixels), "cls": str(int(label)).encode()}


def _write_shards(samples: Iterator[dict[str, str | bytes]], folder: Path, shard_size: int) -> None:
    if (first := next(samples, None)) is None:
        raise ValueError("no pictures to pack")
    pattern = str(folder).replace("%", "%%") + "/" + _NAME
    fixed = {"user": "root", "group": "root", "mtime": 0.0, "encoder": False}
    with wds.ShardWriter(pattern, maxcount=shard_size, verbose=0, post=_finish, **fixed) as writer:
        writer.write(first)
        for sample in samples:
            writer.write(sample)


def _finish(shard: str) -> None:
    """A shard that is whole goes to the disk for good and gets its index."""
    path = Path(shard)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    make_once(path.with_name(path.name + SUFFIX), index_shard(path, path.name).save, deadline=60.0)


def _publish(whole: Path, out_dir: Path) -> None:
    folder = os.open(whole, os.O_RDONLY)
    os.fsync(folder)  # its entries, before its name tells that they are all there
    os.close(folder)
    try:
        whole.rename(out_dir)
    except OSError:
        if packed(out_dir) is None:
            raise
