"""Measuring on a machine that others use, too: waits for calm, tells how much was disturbed, and tries again."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from loaders import cpu_seconds

T = TypeVar("T")

DISTURBED = 0.1  # of the cores; a measurement during which others take more is made again


def calm(measure: Callable[[], T], most: int, patience: float) -> tuple[T, float]:
    """The first measurement with little else going on, or the least disturbed of `most`; the share of the others, %.

    Before each of several, calm is waited for up to `patience` seconds.
    """
    tries = []
    while not tries or len(tries) < most and min(tries)[0] > DISTURBED:
        if most > 1:
            wait_for_calm(patience)
        others = Others()
        measured = measure()
        tries.append((others.share(), len(tries), measured))
    share, _, measured = min(tries)
    return measured, 100 * share


class Others:
    """What processes other than this one and those that it started do from now on."""

    def __init__(self) -> None:
        self._start, self._busy = time.monotonic(), self._busy_seconds()

    def share(self) -> float:
        """Of all cores."""
        return (self._busy_seconds() - self._busy) / (time.monotonic() - self._start) / os.cpu_count()

    @staticmethod
    def _busy_seconds() -> float:
        user, nice, system, _idle, _io, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
        return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - cpu_seconds()


def wait_for_calm(patience: float) -> None:
    """Until others have taken little for a second, but not for ever."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        others = Others()
        time.sleep(1)
        if others.share() < DISTURBED:
            return
