"""Processes that decode, because Python's lock keeps threads from decoding side by side.

Such a process is given encoded pictures and puts pixels into memory that it shares with the one that asked: it opens no
file, knows no store, and imports neither torch nor Ray. It ends when nobody can ask it any more.
"""

import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import numpy as np

from .images import decode
from .parallel import WorkerDiedError

_TRIES = 3  # processes that may die of the same pictures
_LOOK = 5.0  # seconds after which a process without work looks whether the one that asks is still there
_END = 5.0  # seconds that a killed process is waited for


class Decoder:
    """A process that decodes up to `most` pictures at a time; for one thread at a time."""

    def __init__(self, most: int, size: int, resize: bool):
        self._shape, self._resize = (most, 3, size, size), resize
        self._open, self._lock = True, threading.Lock()  # held while it is replaced or closed
        self._start()

    @property
    def is_ready(self) -> bool:
        """Whether it has begun: it takes a moment to start, which need not be waited for."""
        return self._greeted or self._connection.poll()

    def decode(self, encoded: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
        """Pixels uint8 (n, 3, size, size), and which of them `images.decode` refuses; they stay until the next call.

        A process that dies is replaced. Raises WorkerDiedError where that one dies of the same pictures, and the next.
        """
        for _ in range(_TRIES):
            try:
                return self._pixels[: len(encoded)], self._ask(encoded)
            except (EOFError, OSError) as error:
                died = error
                with self._lock:
                    if not self._open:
                        raise
                    self._end()
                    self._start()
        raise WorkerDiedError(
            f"processes that decode pictures died {_TRIES} times over the same {len(encoded)} (out of memory?); the "
            "same command goes on from the last checkpoint, data.loader_workers=0 decodes without processes"
        ) from died

    def close(self) -> None:
        """Ends the process; whoever waits for it gets an EOFError."""
        with self._lock:
            self._open = False
            self._end()

    def _start(self) -> None:
        memory = os.memfd_create("pictures")
        os.ftruncate(memory, int(np.prod(self._shape)))
        self._connection, theirs = multiprocessing.Pipe()
        descriptors = (theirs.fileno(), memory)
        words = [sys.executable, "-P", "-m", __spec__.name, *map(str, (*descriptors, *self._shape, int(self._resize)))]
        path = os.pathsep.join(map(os.path.abspath, sys.path))  # with -P, Python adds no folder of its own to it
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=environment, pass_fds=descriptors)
        self._pixels, self._greeted = _mapped(memory, self._shape), False
        theirs.close()

    def _end(self) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)

    def _ask(self, encoded: Sequence[bytes]) -> list[int]:
        if not self._greeted:
            self._connection.recv()
            self._greeted = True
        self._connection.send(encoded)
        return self._connection.recv()


class Decoders:
    """A decoder for each of so many threads, where `start` makes one; without, there is none to be lent."""

    def __init__(self, start: Callable[[], Decoder] | None, number: int):
        self._all = [start() for _ in range(number)] if start else []
        self._idle = deque(self._all)

    @contextmanager
    def lent(self) -> Iterator[Decoder | None]:
        """One that nobody else uses meanwhile; None while it is still starting."""
        if not self._all:
            yield None
            return
        decoder = self._idle.popleft()
        try:
            yield decoder if decoder.is_ready else None
        finally:
            self._idle.append(decoder)

    def close(self) -> None:
        """Ends all."""
        for decoder in self._all:
            decoder.close()


def _mapped(memory: int, shape: Sequence[int]) -> np.ndarray:
    """The shared memory of a descriptor, which is closed, as an array."""
    pixels = np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(shape)
    os.close(memory)
    return pixels


def _serve(connection: Connection, pixels: np.ndarray, resize: bool, asker: int) -> None:
    connection.send(None)
    while True:
        while not connection.poll(_LOOK):
            if os.getppid() != asker:  # a third process may keep the pipe open
                return
        encoded = connection.recv()
        connection.send([number for number, one in enumerate(encoded) if not _decoded(one, pixels[number], resize)])


def _decoded(encoded: bytes, pixels: np.ndarray, resize: bool) -> bool:
    try:
        pixels[...] = decode(encoded, pixels.shape[-1], resize, "")
    except ValueError:
        return False
    return True


def _main(words: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides
    pipe, memory, *shape, resize = map(int, words)
    with suppress(EOFError, OSError):  # nobody is at the other end any more
        _serve(Connection(pipe), _mapped(memory, shape), bool(resize), os.getppid())


if __name__ == "__main__":
    _main(sys.argv[1:])
