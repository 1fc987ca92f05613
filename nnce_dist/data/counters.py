"""What the data side of this process has counted; the recorder sums it over the ranks (`metrics/names.py: DATA`)."""

import threading
from collections.abc import Callable

from ..metrics.names import DATA

_totals: dict[str, float] = dict.fromkeys(DATA, 0)
_lock = threading.Lock()


def add(name: str, amount: float = 1) -> None:
    """Adds to one of the totals; from any thread. KeyError for a name that `DATA` does not list."""
    with _lock:
        _totals[name] += amount


def since_now() -> Callable[[], dict[str, float]]:
    """A function that gives all totals, by name, of what is counted from now on: those of one job in this process."""
    with _lock:
        before = dict(_totals)

    def totals() -> dict[str, float]:
        with _lock:
            return {name: total - before[name] for name, total in _totals.items()}

    return totals
