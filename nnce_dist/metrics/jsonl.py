"""metrics.jsonl: one record a line, appended whole; the history that a resumed run continues without counting twice."""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from .names import Record
from .recorder import FanOut, Sink

FILE_NAME = "metrics.jsonl"
_NOT_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def encode(record: Record) -> bytes:
    """One line of strict JSON; infinities and NaN, which it lacks, become words that `decode` turns back."""
    return (json.dumps({key: _plain(value) for key, value in record.items()}, allow_nan=False) + "\n").encode()


def _plain(value: float | int | str) -> float | int | str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode(line: bytes) -> dict[str, float | int | str]:
    """The record of one line; ValueError when it is none."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"not a record: {line[:80]!r}")
    return {key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def read(path: Path) -> list[dict[str, float | int | str]]:
    """All whole records of a file; a torn last line, left by a crash, is left out."""
    return [record for record, _ in _records(path)]


def training_records(folder: Path) -> list[dict[str, float | int | str]]:
    """The records of a job's training, in order; none where it has not begun."""
    path = folder / FILE_NAME
    return [record for record in read(path) if "samples_seen" in record] if path.exists() else []


def _records(path: Path) -> Iterator[tuple[dict[str, float | int | str], int]]:
    """Each record with the position right after its line."""
    end = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            yield decode(line), end
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a metrics record ({error}); move the file away") from None


def truncate(path: Path, samples_seen: int) -> dict[str, float | int | str]:
    """Cuts off a torn last line and every record from beyond `samples_seen`, the position training resumes at.

    Gives the newest value of every key that remains, and as `started` the time of the first record.
    """
    end, newest = 0, {}
    for record, end_of_line in _records(path):
        if record.get("samples_seen", 0) > samples_seen:
            break
        end = end_of_line
        newest = {"started": record.get("time", time.time()), **newest, **record}
    os.truncate(path, end)
    return newest


class JsonlSink(Sink):
    """Appends records to a file, which is made with its folder at the first use."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def resume(self, samples_seen: int) -> Record:
        """Cuts the file back to the position that training goes on from; gives the newest values that remain."""
        return truncate(self._path, samples_seen)

    def write(self, record: Record) -> None:
        """Appends one line in one system call, so that a reader or a crash never sees half of it in the middle."""
        line = encode(record)
        before = os.fstat(self._file).st_size
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, before)
            raise OSError("only a part of a record could be written; is the disk full?")

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def append(path: Path, record: Record) -> None:
    """Adds a record to a file outside of training; a failure, of a full disk perhaps, is named and ends no job."""
    with closing(FanOut([JsonlSink(path)])) as sinks:
        sinks.write(record)
