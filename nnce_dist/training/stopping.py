"""Stopping well: a first signal asks for the end of the step and a checkpoint, a second ends the process at once."""

import os
import signal
import threading
from collections.abc import Mapping


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to end and its state is saved
    """The work ended early on request, with its state saved; `where` says how far it got."""

    def __init__(self, signal_number: int, where: str):
        super().__init__(signal_number, where)
        self.signal_number, self.where = signal_number, where
        self.exit_code = 128 + signal_number

    @classmethod
    def together(cls, jobs: Mapping[str, "Stopped"]) -> "Stopped":
        """One for several jobs, each with its name."""
        where = ", ".join(f"{stopped.where} ({name})" for name, stopped in jobs.items())
        return cls(next(iter(jobs.values())).signal_number, where)

    def __str__(self) -> str:
        name = signal.Signals(self.signal_number).name
        return f"stopped by {name} at {self.where}; the same command continues"


class StopSignal:
    """Remembers the first SIGTERM or SIGINT. Use as a context manager in the main thread; elsewhere it does nothing."""

    def __init__(self):
        self.received: int | None = None
        self._previous = {}

    def _handle(self, number: int, frame) -> None:
        if self.received is not None:
            os._exit(128 + number)  # what is committed is whole; waiting for threads would not be "at once"
        self.received = number

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
