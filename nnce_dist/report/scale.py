"""Where the values of a setting lie along an axis: linear, logarithmic with a place for infinity, or words in a row."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.ticker import MaxNLocator

DECADES = 30.0  # numbers above 0 that span more than this factor are shown on a logarithmic scale
BEYOND = 0.18  # of the axis: how far past the largest number infinity lies
_FINE = 7  # digits of round numbers between values that may differ by little
CROWDED = 0.09  # of the axis: values nearer than this are not all named


@dataclass(frozen=True)
class Scale:
    """Places of values; numbers ascend, words stand in the order in which they came."""

    kind: Literal["linear", "log", "words"]
    values: tuple[Any, ...]

    def at(self, value: Any) -> float:
        """The place of a value."""
        if self.kind == "words":
            return self.values.index(value)
        if math.isinf(value):
            low, high = self._ends
            return high + BEYOND * ((high - low) or 1)
        return math.log10(value) if self.kind == "log" else float(value)

    @property
    def limits(self) -> tuple[float, float]:
        """The first and the last place."""
        places = [self.at(value) for value in self.values]
        return min(places), max(places)

    def share(self, value: Any) -> float:
        """The place between the first, 0, and the last, 1."""
        low, high = self.limits
        return (self.at(value) - low) / (high - low) if high > low else 0.5

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Places and what is written there."""
        if self.kind == "words" or self._sparse(most):
            return [(self.at(value), show(value)) for value in self.values]
        low, high = self._ends
        ends = [(self.at(math.inf), show(math.inf))] if math.inf in self.values else []
        if self.kind == "log" and math.floor(high) - math.ceil(low) >= 1:
            powers = range(math.ceil(low), math.floor(high) + 1)
            step = math.ceil(len(powers) / most)
            return [(float(power), _power(power)) for power in powers[::step]] + ends
        first, last = (10**low, 10**high) if self.kind == "log" else (low, high)
        candidates = _one_two_five(low, high) if self.kind == "log" else MaxNLocator(most - 1).tick_values(low, high)
        found = [value for value in candidates if first <= value <= last]
        return [(self.at(value), show(value, _FINE)) for value in found] + ends

    @property
    def _ends(self) -> tuple[float, float]:
        finite = [self.at(value) for value in self.values if math.isfinite(value)]
        return (min(finite), max(finite)) if finite else (0.0, 0.0)

    def _sparse(self, most: int) -> bool:
        places, (low, high) = sorted(map(self.at, self.values)), self.limits
        gaps = (after - before for before, after in zip(places, places[1:], strict=False))
        return len(places) <= most and all(gap > CROWDED * (high - low) for gap in gaps)


def scale(values: Iterable[Any], logarithmic: bool = False) -> Scale:
    """The scale that suits the values."""
    found = list({tuple(one) if isinstance(one, list) else one: one for one in values}.values())
    if not all(is_number(value) for value in found):
        return Scale("words", tuple(found))
    finite = [value for value in found if math.isfinite(value)]
    positive = bool(finite) and min(finite) > 0
    wide = positive and max(finite) > DECADES * min(finite)
    return Scale("log" if positive and (logarithmic or wide) else "linear", tuple(sorted(found)))


def _one_two_five(low: float, high: float) -> list[float]:
    """1, 2 and 5 times every power of ten from 10^low to 10^high."""
    return [lead * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for lead in (1, 2, 5)]


def is_number(value: Any) -> bool:
    """Whether it is one, and can be compared with others."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def show(value: Any, digits: int = 4) -> str:
    """A value as the reader sees it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    return f"{value:.{digits}g}" if isinstance(value, int | float) else str(value)


def _power(power: int) -> str:
    return show(10**power) if -3 < power < 5 else f"$10^{{{power}}}$"
