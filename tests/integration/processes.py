"""Processes that tests start: told apart from others by a mark in their environment, which their children inherit."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "NNCE_TEST_MARK"


@contextmanager
def ray_environment() -> Iterator[dict[str, str]]:
    """An environment for a Ray of its own: its files, token and mark; the folder is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="nr-", dir="/tmp"))  # short: unix sockets allow 107 characters
    environment = {
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parent),  # workers import the functions of the tests
        "OMP_NUM_THREADS": "1",
        MARK: uuid.uuid4().hex,
    }
    try:
        yield environment
    finally:
        shutil.rmtree(home, ignore_errors=True)


def marked(mark: str) -> list[int]:
    """The living processes, other than this one, whose environment holds the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # gone meanwhile, or a zombie
            continue
    return found


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Returns when the condition is true; TimeoutError naming `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
