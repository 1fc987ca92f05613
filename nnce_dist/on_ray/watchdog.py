"""A process that makes no progress is ended, so that Ray starts another.

Ray Train's health check sees a worker whose process stands still, but neither one whose training alone is stuck nor a
trial outside a worker group, and it shows no stacks. Its detector of hangs (`train._detect_hangs`) sees collectives of
NCCL that do not match, on GPUs, as long as every rank's process answers. The check here sees all of these.
"""

import faulthandler
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

FOLDER = "stalled"  # in the run's folder: the stacks of processes that were ended
# A child does it, because it runs on when this process is stopped or stuck with Python's lock held. Its standard input
# brings a zero per sign of life and, when there was none for too long, the stacks; at its end nothing is left to watch.
_WATCH = """
import os, select, signal, sys, time
process, seconds, path = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
while select.select([0], [], [], seconds)[0]:
    if not os.read(0, 65536):
        sys.exit()
os.kill(process, signal.SIGCONT)
os.kill(process, signal.SIGUSR2)
stacks, end = b"", time.monotonic() + 1
while (left := end - time.monotonic()) > 0:
    if select.select([0], [], [], left)[0]:
        stacks += os.read(0, 65536)
try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(stacks.replace(bytes(1), b""))
finally:  # whether or not the disk took the stacks
    os.kill(process, signal.SIGKILL)
"""


class Watchdog:
    """Ends this process, after writing its stacks down, when `alive` has been called but not again for `timeout` s."""

    def __init__(self, timeout: float, run_dir: Path):
        self._timeout, self._folder = timeout, Path(run_dir) / FOLDER
        self._child: subprocess.Popen | None = None

    def alive(self) -> None:
        """There was progress."""
        if self._child is None:
            self._start()
        with suppress(BrokenPipeError):
            os.write(self._child.stdin.fileno(), bytes(1))

    def _start(self) -> None:
        stacks = self._folder / f"{os.uname().nodename}-{os.getpid()}.new"
        command = [sys.executable, "-I", "-S", "-c", _WATCH, str(os.getpid()), str(self._timeout), str(stacks)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE)
        faulthandler.register(signal.SIGUSR2, self._child.stdin, all_threads=True)

    def close(self) -> None:
        """The work is done; nobody waits for progress."""
        if self._child is None:
            return
        faulthandler.unregister(signal.SIGUSR2)
        self._child.stdin.close()
        self._child.wait(timeout=10)
        self._child = None


def newly_stalled(run_dir: Path) -> list[Path]:
    """The stacks of processes that were ended since the last call."""
    found = []
    for path in (Path(run_dir) / FOLDER).glob("*.new"):
        with suppress(FileNotFoundError):  # another trial's controller was first
            found.append(path.rename(path.with_suffix(".txt")))
    return found
