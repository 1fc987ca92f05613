"""Stopping well: a first signal asks for the end of the step and a checkpoint, a second ends the process at once."""

import signal
import threading


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to end and its state is saved
    """Training ended early on request, after committing a checkpoint."""

    def __init__(self, signal_number: int, samples_seen: int):
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} at {samples_seen:,} samples; run again to continue"
        )
        self.exit_code = 128 + signal_number


class StopSignal:
    """Remembers the first SIGTERM or SIGINT. Use as a context manager in the main thread; elsewhere it does nothing."""

    def __init__(self):
        self.received: int | None = None
        self._previous = {}

    def _handle(self, number: int, frame) -> None:
        if self.received is not None:
            raise SystemExit(128 + number)
        self.received = number

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
