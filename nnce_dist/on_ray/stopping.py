"""Stopping a run well: a signal to its driver becomes a note in Ray's key-value store, which workers on any node read.

Ray itself ends workers outright, whoever asks; the note is what lets them finish the step and save.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import ray
from ray.experimental import internal_kv

from ..training.stopping import StopSignal

_POLL = 0.5  # seconds between two looks at the note
_AT_ONCE = 0.1  # seconds


def _note() -> str:
    """The note's key: a run is one Ray job, however many trials and workers it has."""
    return f"nnce_dist/stop/{ray.get_runtime_context().get_job_id()}"


class WorkerSignals(StopSignal):
    """What asks this worker's process to stop: a signal of its own, or one that the run's driver got (`run`)."""

    def __init__(self):
        super().__init__()
        self.run: int | None = None
        self._follower: threading.Thread | None = None

    def follow_run(self) -> None:
        """From now on `run` follows what the driver is told; one rank of a group is enough."""
        if not self._follower:
            self._follower = threading.Thread(target=self._follow_note, name="stop-note", daemon=True)
            self._follower.start()

    def _follow_note(self) -> None:
        while self.run is None:
            with suppress(ray.exceptions.RayError):  # the head is away; whether the run survives is not decided here
                self.run = int(internal_kv._internal_kv_get(_note()) or 0) or None
            time.sleep(_POLL)
        self.received = self.received or self.run


@cache
def worker_signals() -> WorkerSignals:
    """The one of this process; made in its main thread it sees the process's signals too."""
    signals = WorkerSignals()
    signals.__enter__()
    return signals


class StopOnSignal:
    """A first SIGINT or SIGTERM asks every worker of the run to save and leave; the block goes on until they have.

    After `grace` seconds it ends with SystemExit(128 + signal) whatever they do; with a grace of 0, where there are no
    workers yet, at once. A second signal ends the process at once, and what belongs to it with it. Use as a context
    manager in the main thread; elsewhere it does nothing.
    """

    def __init__(self, grace: float):
        self._grace = grace
        self._received: int | None = None
        self._asked = threading.Event()
        self._previous: dict[int, Callable] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handlers = {signal.SIGINT: self._handle, signal.SIGTERM: self._handle, signal.SIGALRM: self._give_up}
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        threading.Thread(target=self._leave_note, name="stop-run", daemon=True).start()

    def _handle(self, number: int, frame) -> None:
        self._received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(self._grace, _AT_ONCE))
        what = f"what is at work saves after its step, for at most {self._grace:g} s; a second signal ends at once"
        line = f"stopping: {what if self._grace else 'nothing has begun, so there is nothing to save'}\n"
        os.write(2, line.encode())  # print may not be entered twice
        self._asked.set()

    def _leave_note(self) -> None:
        """In a thread of its own: Ray must not be called from a handler that may have interrupted a call of Ray."""
        self._asked.wait()
        if self._received:
            internal_kv._internal_kv_put(_note(), str(self._received))

    def _give_up(self, number: int, frame) -> None:
        if self._grace:
            os.write(2, b"not all was saved in time; the same command continues from the newest checkpoints\n")
        raise KeyboardInterrupt  # while Ray waits it lets this one through, but turns SystemExit into status 1

    def __exit__(self, kind, error, trace) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._asked.set()
        if self._received:
            internal_kv._internal_kv_del(_note())
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(128 + self._received) from None
