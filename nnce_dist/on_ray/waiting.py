"""How long a rank stood in reductions, which end when the slowest rank has come."""

import time

import torch

_MOST = 1000  # spans whose ends are not yet asked for

Mark = float | torch.cuda.Event


class Waiting:
    """`with waiting: all_reduce(...)` adds a span; a GPU's are measured where they pass, and nothing waits for it."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Mark, Mark]] = []
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._start = self._mark()

    def __exit__(self, *error) -> None:
        self._spans.append((self._start, self._mark()))
        if len(self._spans) == _MOST:
            self.seconds()

    def seconds(self) -> float:
        """The sum of all spans so far."""
        self._seconds += sum(_between(*span) for span in self._spans)
        self._spans.clear()
        return self._seconds

    def _mark(self) -> Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(start: Mark, end: Mark) -> float:
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000
