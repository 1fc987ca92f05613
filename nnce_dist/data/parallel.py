"""Work of several processes or threads, handed out little by little; none of them outlives who started it."""

import atexit
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from typing import TypeVar
from weakref import WeakSet

S = TypeVar("S")
T = TypeVar("T")

_AHEAD = 2  # items waiting per process
_DEADLINE = 1800.0  # seconds without any result
_LAST_SECONDS = 1.0  # that threads have when the process ends

_threads: WeakSet[threading.Thread] = WeakSet()
ending = threading.Event()  # set when the process ends

_work: Callable = None  # of a worker process: its task


class WorkerDiedError(RuntimeError):
    """A process ended without a word."""


def spread(work: Callable[[S], T], items: Iterable[S], processes: int) -> Iterator[T]:
    """The results of `work` in the order in which they are ready.

    `work` goes to each process once, so it may keep what it opens there. Items are drawn when they are needed. With one
    process all is done in this one. Raises what `work` raises, WorkerDiedError and TimeoutError; then no item is begun.
    """
    if processes == 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")  # threads of an S3 client do not survive a fork
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(work,))
    try:
        yield from _results(pool, iter(items), _AHEAD * processes)
    except BrokenProcessPool:
        raise WorkerDiedError("a process died (out of memory?); the same command goes on from here") from None
    finally:
        pool.shutdown(cancel_futures=True)


def in_threads(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """The results in order; after a failure nothing new is begun, and what was begun ends by its own deadline."""
    pool, failed = ThreadPoolExecutor(threads), threading.Event()

    def begin(item: S) -> T | None:
        if failed.is_set():
            return None  # is never seen: items are begun in order, so that what failed comes before this one
        try:
            return function(item)
        except BaseException:
            failed.set()
            raise

    try:
        yield from pool.map(begin, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _results(pool: ProcessPoolExecutor, items: Iterator[S], ahead: int) -> Iterator[T]:
    waiting = set()
    while True:
        waiting |= {pool.submit(_do, item) for item in islice(items, ahead - len(waiting))}
        if not waiting:
            return
        done, waiting = wait(waiting, _DEADLINE, FIRST_COMPLETED)
        if not done:
            raise TimeoutError(f"no result of {len(waiting)} within {_DEADLINE:g} s; check the disk or the store")
        yield from (future.result() for future in done)


def _begin(work: Callable) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _do(item: S) -> T:
    return _work(item)


class DaemonPool:
    """A few threads that do work in its order; unlike `ThreadPoolExecutor`'s, they do not keep the process (`_end`)."""

    def __init__(self, threads: int, name: str):
        self._free, self._name = threads, name
        self._lock, self._waiting = threading.Lock(), deque()

    def submit(self, function: Callable[..., T], *args) -> "Future[T]":
        """The result to come."""
        future = Future()
        with self._lock:
            self._waiting.append((future, partial(function, *args)))
            if self._free:
                self._free -= 1
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                _threads.add(thread)
                thread.start()
        return future

    def _work(self) -> None:
        while task := self._next():
            _settle(*task)

    def _next(self) -> tuple[Future, Callable] | None:
        """What comes next; without anything the thread ends."""
        with self._lock:
            if self._waiting and not ending.is_set():
                return self._waiting.popleft()
            self._free += 1
            return None


def _settle(future: Future, work: Callable) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        del future  # which the error would keep alive, and the error it


@atexit.register
def _end() -> None:
    """A moment for what is computed, and no more: a thread that leaves C++ when Python is gone aborts the process."""
    ending.set()
    end = time.monotonic() + _LAST_SECONDS
    for thread in list(_threads):
        thread.join(max(end - time.monotonic(), 0))
