"""Samples that cannot be read, and what `data.on_error` says to do about them.

With `skip(k)` the place of such a sample is taken by another one that depends on its number alone: the next sample of
the set, or, where a whole shard is damaged, the one at its place in the next shard. So every rank, worker and resumed
run does the same, and neither the order of the others nor the number of steps changes.
"""

import fcntl
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypedDict, TypeVar

from ..config.checks import tolerated
from .cache import DamagedShardError
from .index import ShardSet

T = TypeVar("T")

SKIPPED = "skipped.jsonl"  # what a list of bad samples is called
IN_A_ROW = 16  # so many bad ones on end are no accident
_log = logging.getLogger(__name__)


class Skipped(TypedDict):
    """A sample, or a whole shard, that was left out."""

    shard: str  # its URL
    key: str | None  # None: all samples of the shard
    samples: int
    reason: str


class BadDataError(ValueError):
    """More of the data cannot be read than `data.on_error` tolerates."""


class BadSamples:
    """Finds a readable sample for every number and keeps count of those that are not.

    `path` is a list of JSON lines that all processes of a run share, so that each bad sample is named and counted once.
    """

    def __init__(self, shards: ShardSet, on_error: str, path: Path):
        self._shards, self._on_error, self._path = shards, on_error, path
        self.tolerated = tolerated(on_error)  # samples
        self._next: dict[int, int] = {}  # a bad sample -> the one to try in its place

    def readable(self, sample: int, read: Callable[[int], T]) -> tuple[int, T]:
        """The number of the sample to use for this one, which is nearly always itself, and `read` of that number.

        `read` raises ValueError for bad data; so does this without `skip`, and BadDataError beyond what it tolerates.
        """
        for _ in range(IN_A_ROW):
            if (following := self._next.get(sample)) is None:
                try:
                    return sample, read(sample)
                except ValueError as error:
                    following = self._skip(sample, error)
            sample = following
        raise BadDataError(
            f"{self._shards.name(sample)} comes after {IN_A_ROW} that cannot be read, all listed in {self._path}; "
            "so many in a row are no accident: check the shards and data.image_size"
        )

    def _skip(self, sample: int, error: ValueError) -> int:
        if not self.tolerated:
            raise error
        shard, row = self._shards.place(sample)
        url, key = self._shards.identity(sample)
        if isinstance(error, DamagedShardError):
            key, samples, following = None, len(self._shards.indexes[shard]), self._shards.number(shard + 1, row)
        else:
            samples, following = 1, (sample + 1) % len(self._shards)
        self._note(Skipped(shard=url, key=key, samples=samples, reason=str(error)))
        self._next[sample] = following
        return following

    def _note(self, skipped: Skipped) -> None:
        """Adds to the list what is not in it; raises BadDataError where it is too long."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # keeps out other threads, too: each has opened the file itself
            known, end = _whole(file, self._path)
            new = all((old["shard"], old["key"]) != (skipped["shard"], skipped["key"]) for old in known)
            if new:
                file.truncate(end)
                file.write(json.dumps(skipped).encode() + b"\n")
        if new:
            known.append(skipped)
            _log.warning("skipped: %s", skipped["reason"])
        if (total := sum(one["samples"] for one in known)) > self.tolerated:
            raise BadDataError(
                f"{total} samples cannot be read, more than data.on_error={self._on_error} tolerates; the last: "
                f"{skipped['reason']}; all are listed in {self._path}"
            )


def read_skipped(path: Path) -> list[Skipped]:
    """What was skipped, in the order of its discovery; nothing where there is no list."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        return _whole(file, path)[0]


def _whole(file: BinaryIO, path: Path) -> tuple[list[Skipped], int]:
    """What is listed, and where it ends: behind that may be a torn line, which a crash or a full disk left."""
    file.seek(0)
    lines = [line for line in file if line.endswith(b"\n")]
    try:
        return [json.loads(line) for line in lines], sum(map(len, lines))
    except ValueError as error:
        raise ValueError(f"{path}: not a list of skipped samples ({error}); move the file away") from None
