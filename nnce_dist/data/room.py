"""Room for copies of shards in a folder that several processes use: held copies stay, the longest unused go first.

A copy is named <digest>-<bytes>.tar and, until it is whole, has `.tmp` behind that: so its size counts before it is
there. Holding is a shared lock on the open file, which ends with the process.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .locks import lock, try_lock

_COPY = re.compile(r"[0-9a-f]{32}-(\d+)\.tar(\.tmp)?")
_BEGUN = re.compile(r"[0-9a-f]{32}[-.].+\.tmp")  # the folder may hold what others call .tmp
_ASKED = ".asked"
_LOCKED_BY = 60.0  # seconds after which the writer of any file has locked it; that of a copy checks that it has


class NoRoomError(OSError):
    """All copies are held; there is no room for another one."""


def hold_copy(path: Path, num_bytes: int) -> int | None:
    """An open file that holds the copy, or None where there is none to hold; one of another size is removed."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if try_lock(file, fcntl.LOCK_SH) and os.fstat(file).st_nlink:
        if os.fstat(file).st_size == num_bytes:
            os.utime(file)  # the time of its last use
            return file
        path.unlink(missing_ok=True)  # damaged from outside: a finished copy had the right size
    os.close(file)
    return None


def make_room(folder: Path, num_bytes: int, max_bytes: int) -> None:
    """Removes copies until one of `num_bytes` fits, whose unfinished file is locked by the caller and counts already.

    Raises NoRoomError when too many are held, or being made.
    """
    if not max_bytes:
        return
    with alone(folder):
        copies = [(path, int(_COPY.fullmatch(path.name)[1])) for path, _ in _copies(folder)]
        excess = sum(size for _, size in copies) - max_bytes
        excess -= _remove_first(copies, excess)
    if excess > 0:
        raise NoRoomError(
            f"{folder}: no room for a shard of {num_bytes} bytes: {excess} more than data.cache_bytes={max_bytes} "
            "are in use; raise it, or run fewer jobs at a time on this machine"
        )


def ask_for_room(folder: Path) -> None:
    """Tells every process that reads from the folder that one waits for room."""
    (folder / _ASKED).touch()


def asked_at(folder: Path) -> float:
    """When room was last asked for, on the clock of the folder; 0: never."""
    try:
        return (folder / _ASKED).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def evict(folder: Path, num_bytes: int) -> bool:
    """Removes copies, whatever their bound, until so many bytes of the disk are free; False where all are held."""
    with alone(folder):
        return _remove_first([(path, status.st_size) for path, status in _copies(folder)], num_bytes) > 0


def sweep(folder: Path) -> None:
    """Removes what processes that were killed had begun to write here; what a living one writes is locked, or new."""
    with suppress(OSError):  # a folder that cannot be written to has nothing of ours to remove
        begun = (path for path in folder.glob("*.tmp") if _BEGUN.fullmatch(path.name))
        if left := [path for path in begun if _may_be_left(path)]:
            with alone(folder):
                for path in left:
                    _remove(path)


def _may_be_left(path: Path) -> bool:
    return bool(_COPY.fullmatch(path.name)) or time.time() - path.stat().st_mtime > _LOCKED_BY


def _remove_first(copies: Iterable[tuple[Path, int]], num_bytes: int) -> int:
    """Removes the first of these copies that nobody holds; gives their bytes, `num_bytes` or more if there are."""
    removed = 0
    for path, size in copies:
        if removed >= num_bytes:
            break
        if _remove(path):
            removed += size
    return removed


def _copies(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The longest unused first."""
    return sorted(_stats(folder), key=lambda copy: copy[1].st_mtime_ns)


def _stats(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for name in filter(_COPY.fullmatch, os.listdir(folder)):
        for path in (folder / name, _final(folder / name)):  # it may be finished meanwhile
            try:
                yield path, path.stat()
                break
            except FileNotFoundError:
                continue


def _final(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".tmp"))


def _remove(path: Path) -> bool:
    """Removes a copy that nobody holds, or what a killed process left of one; not one that was finished meanwhile."""
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDWR)
        try:
            if not try_lock(file, fcntl.LOCK_EX):
                return False
            path.unlink(missing_ok=True)
        finally:
            os.close(file)
    return not _final(path).exists()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time; what is done here takes milliseconds."""
    with open(folder / ".room", "ab") as file:
        lock(file, folder / ".room", deadline=60.0)
        yield
