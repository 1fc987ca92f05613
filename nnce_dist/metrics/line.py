"""The progress of a command: a line that moves on a terminal, and a line every ten seconds where there is none."""

import math
import sys
import time
from datetime import timedelta


class ProgressLine:
    """`with ProgressLine("pack", "images", 17000) as line: line.show(400)`: share, images/s and time left."""

    def __init__(self, title: str, unit: str, total: float):
        self._title, self._unit, self._total = title, unit, total
        self._moves = sys.stderr.isatty()
        self._interval = 0.2 if self._moves else 10.0  # seconds
        self._first: tuple[float, float] | None = None  # when the first figure came, and it
        self._shown = -math.inf

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *error) -> None:
        if self._moves:
            print(file=sys.stderr)

    def show(self, done: float) -> None:
        """So much is done; the rate counts what was done since the first call."""
        now = time.monotonic()
        self._first = self._first or (now, done)
        if now - self._shown < self._interval and done < self._total:
            return
        self._shown = now
        start, before = self._first
        rate = (done - before) / (now - start) if now > start else 0
        left = timedelta(seconds=round((self._total - done) / rate)) if rate else "-"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        text = f"{self._title} {done / self._total:4.0%} {speed:>8} {self._unit}/s {left!s:>8} left"
        print(f"\r{text}\x1b[K" if self._moves else f"{text}\n", end="", file=sys.stderr, flush=True)
