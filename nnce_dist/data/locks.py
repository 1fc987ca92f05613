"""Locks on open files: they end with the process that holds them, so none is ever left behind."""

import fcntl
import time
from pathlib import Path
from typing import BinaryIO


def lock(file: BinaryIO, path: Path, deadline: float) -> None:
    """Waits for the lock on an open file; TimeoutError after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not try_lock(file.fileno(), fcntl.LOCK_EX):
        wait_for_other(path, end, deadline)


def wait_for_other(path: Path, end: float, deadline: float) -> None:
    """A short wait for the process that has a file locked; TimeoutError beyond `end`, after `deadline` seconds."""
    if time.monotonic() > end:
        raise TimeoutError(f"{path}: another process has been writing it for {deadline:.0f} s; is it stuck?")
    time.sleep(0.05)


def try_lock(descriptor: int, kind: int) -> bool:
    """Takes a lock of this kind (`fcntl.LOCK_SH` or `LOCK_EX`) unless another open file has one that forbids it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
