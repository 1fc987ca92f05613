"""How long each rank works for a step. All move at the pace of the slowest, so a slow one is named."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from .runtime import Runtime, gathered

KEY = "rank_step_seconds"
_SLOW = 2.5  # times the others; ranks whose shares of a batch are not equal may take twice as long
_RECORDS = 3  # in a row; a save or another process slows a rank for less


class Pace:
    """Measures every rank's own work; what it waited for the others is left out. Every rank has one."""

    def __init__(self, runtime: Runtime, say: Callable[[str], None]):
        self._runtime, self._say = runtime, say
        self._worked, self._steps = time.perf_counter() - runtime.waited(), 0
        self._slow: deque[int | None] = deque(maxlen=_RECORDS)
        self._named: int | None = None

    def step(self) -> None:
        """A step was made."""
        self._steps += 1

    def figures(self) -> dict[str, float]:
        """Seconds a step of each rank since the last call, by their keys in a record; none where a rank is alone.

        All ranks must call it equally often. A rank that stays slow is named once.
        """
        worked = time.perf_counter() - self._runtime.waited()
        mine, self._worked, self._steps = (worked - self._worked) / max(self._steps, 1), worked, 0
        if self._runtime.world_size == 1:
            return {}
        each = gathered(self._runtime, torch.tensor(mine, dtype=torch.float64, device=self._runtime.device)).tolist()
        if self._runtime.rank == 0:
            self._watch(each)
        return {f"{KEY}/{rank}": seconds for rank, seconds in enumerate(each)}

    def _watch(self, each: Sequence[float]) -> None:
        slowest = max(range(len(each)), key=each.__getitem__)
        others = statistics.median([*each[:slowest], *each[slowest + 1 :]])
        self._slow.append(slowest if each[slowest] > _SLOW * others else None)
        if list(self._slow) == [slowest] * _RECORDS and self._named != slowest:
            self._named = slowest
            told = f"{each[slowest]:.3g} s a step of its own work, the others {others:.3g} s"
            self._say(f"rank {slowest} is slow: {told}; all wait for it, so look at its node")
