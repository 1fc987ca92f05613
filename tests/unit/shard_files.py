"""Shards made by hand for the tests of the data room."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar archive with these members."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def picture(seed: int, size: int = 16, mode: str = "RGB", form: str = "PNG") -> bytes:
    """An encoded picture of noise."""
    channels = {"RGB": (3,), "RGBA": (4,), "CMYK": (4,)}.get(mode, ())
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, form)
    return file.getvalue()


def write_shards(folder: Path, counts: list[int], num_classes: int = 5, size: int = 16) -> str:
    """Shards of `counts` noise pictures each; sample n has class n % num_classes. Gives the pattern."""
    number = 0
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            members.append((f"{number:06d}.png", picture(number, size)))
            members.append((f"{number:06d}.cls", str(number % num_classes).encode()))
            number += 1
        write_tar(folder / f"a-{shard:03d}.tar", members)
    return f"{folder}/a-{{000..{len(counts) - 1:03d}}}.tar"
