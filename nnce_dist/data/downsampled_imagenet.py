"""Files of the downsampled-ImageNet format (Chrabaszcz, Loshchilov, Hutter 2017) as a source; nothing is unpickled.

Each is an .npz with `data`, uint8 (N, 3 * S * S), the red plane before the green and the blue one, and `labels`, (N,),
counted from 1. A file has 128,000 rows, so they are read forward, a part at a time, and never held together.
"""

import hashlib
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import encode_png
from .source import Sample, Source, labelled

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def files_of_one_set(folder: Path) -> list[Path]:
    """The .npz files of a folder, 2 before 10. Raises ValueError when their names tell of several sets."""
    files = sorted(folder.glob("*.npz"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
    names = sorted({re.sub(r"\d+", "*", file.name) for file in files})
    if len(names) > 1:
        raise ValueError(
            f"{folder}: files of several sets ({', '.join(names)}); name those of one, e.g. "
            f"'{folder}/train_data_batch_{{1..10}}.npz'"
        )
    return files


def downsampled_imagenet(files: Sequence[Path]) -> Source:
    """All pictures of the files, in their order. Raises ValueError with one line that names the file."""
    batches = [_Batch(file) for file in files]
    for batch in batches:
        if batch.side != (side := batches[0].side):
            raise ValueError(f"{batch.path}: pictures of {batch.side} pixels a side, but {files[0]} has {side}")
    rows = _Rows(batches)
    identity = "\n".join(f"{batch.path.name}\t{batch.path.stat().st_size}" for batch in batches)
    digest = hashlib.sha256(identity.encode() + rows.labels.tobytes()).hexdigest()
    return Source(rows, f"downsampled ImageNet, sha256 {digest}", int(rows.labels.max()) + 1)


@dataclass(frozen=True)
class _Pixels:
    """A part: rows that were read, to be encoded wherever it is sent."""

    rows: np.ndarray  # uint8 (n, 3, S, S)
    labels: np.ndarray  # (n,)

    def __iter__(self) -> Iterator[Sample]:
        for planes, label in zip(self.rows, self.labels, strict=True):
            yield labelled("a row", encode_png(np.ascontiguousarray(planes.transpose(1, 2, 0))), label)


class _Batch:
    """One file, open; reading on is cheap, going back starts the file again."""

    def __init__(self, path: Path):
        self.path = path
        with _in_one_line(path):
            archive = zipfile.ZipFile(path)
            with archive.open("labels.npy") as member:
                self.labels = np.lib.format.read_array(member, allow_pickle=False)
            self._data = archive.open("data.npy")
            (count, width), _, dtype = _HEADERS[np.lib.format.read_magic(self._data)](self._data)
            self._start, self.side = self._data.tell(), math.isqrt(width // 3)
            if dtype != np.uint8 or not width == 3 * self.side**2 > 0:
                raise ValueError(f"data holds {dtype} in rows of {width}")
            if self.labels.shape != (count,) or self.labels.dtype.kind not in "iu" or not self.labels.min() >= 1:
                raise ValueError(f"labels are {self.labels.dtype} {self.labels.shape}, from {self.labels.min()}")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some rows as planes, uint8 (stop - start, 3, S, S)."""
        width = 3 * self.side**2
        with _in_one_line(self.path):
            self._data.seek(self._start + start * width)
            content = self._data.read((stop - start) * width)
            return np.frombuffer(content, np.uint8).reshape(stop - start, 3, self.side, self.side)


class _Rows:
    """The rows of several files, one after the other."""

    def __init__(self, batches: Sequence[_Batch]):
        self._batches = batches
        self.labels = np.concatenate([batch.labels for batch in batches]).astype(np.int64) - 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> _Pixels:
        start, stop, _ = part.indices(len(self))
        pieces, first = [], 0
        for batch in self._batches:
            here = max(start - first, 0), min(stop - first, len(batch.labels))
            pieces += [batch.read(*here)] if here[0] < here[1] else []
            first += len(batch.labels)
        return _Pixels(np.concatenate(pieces), self.labels[start:stop])


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file's content becomes one line."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: not of the downsampled-ImageNet format ({' '.join(str(error).split())}); "
            "wanted is an .npz with data, uint8 (N, 3 * S * S), and labels, (N,), counted from 1"
        ) from error
