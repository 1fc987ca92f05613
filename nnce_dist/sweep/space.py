"""The space of a sweep: settings and what they are drawn from, as words; its points are arithmetic over a seed.

grid(1, 10, 100)     every value, with every one of the other grids
choice(karras, var)  one of the values
uniform(0, 1)        a number between the two
loguniform(1, 1e4)   a number between the two, whose logarithm is uniform
integer(2, 10)       a whole number from the first to the last
"""

import ast
import itertools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Point = dict[str, Any]  # a value for each setting of the space

WORDS = {"true": True, "false": False, "inf": math.inf}
RANGES = ("uniform", "loguniform", "integer")
KINDS = ("grid", "choice", *RANGES)
_DIGITS = 6  # significant ones of a number that is drawn: it can be typed again


@dataclass(frozen=True)
class Distribution:
    """What one setting is drawn from: a word of `KINDS` and its values, or the two ends of a range."""

    kind: str
    values: tuple[Any, ...]

    def draw(self, random: random.Random) -> Any:
        """One value."""
        if self.kind == "choice":
            return random.choice(self.values)
        low, high = self.values
        if self.kind == "integer":
            return random.randint(low, high)
        if self.kind == "uniform":
            return rounded(random.uniform(low, high))
        return rounded(math.exp(random.uniform(math.log(low), math.log(high))))

    def clipped(self, value: float) -> float:
        """The nearest value of a range."""
        low, high = self.values
        value = min(max(value, low), high)
        return round(value) if self.kind == "integer" else rounded(value)


def rounded(value: float) -> float:
    """A number with as many digits as a person would type."""
    return float(f"{value:.{_DIGITS}g}")


def parse(text: str) -> Distribution:
    """The distribution that `text` describes. Raises ValueError saying how to write it."""
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", str(text))
    if not match or match[1] not in KINDS:
        raise ValueError("write grid(1,10), choice(a,b), uniform(0,1), loguniform(1,1e4) or integer(2,10)")
    kind, values = match[1], tuple(map(_value, _split(match[2])))
    if not values:
        raise ValueError(f"{kind}() holds no value")
    if kind in RANGES:
        _check_range(kind, values)
    return Distribution(kind, values)


def _check_range(kind: str, values: tuple[Any, ...]) -> None:
    wanted = int if kind == "integer" else (int, float)
    if len(values) != 2 or not all(isinstance(v, wanted) and math.isfinite(v) for v in values) or values[0] > values[1]:
        what = "two whole numbers" if kind == "integer" else "two numbers"
        raise ValueError(f"{kind} takes {what}, the smaller one first")
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError("loguniform takes numbers above 0")


def _split(text: str) -> list[str]:
    """The parts between the commas that no bracket encloses."""
    parts = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text)
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return WORDS.get(text, text)


def points(space: Mapping[str, Distribution], draws: int, seed: int) -> list[Point]:
    """`draws` draws of what is not a grid, each with every cell of the grids; the same for the same seed."""
    grids = {key: what.values for key, what in space.items() if what.kind == "grid"}
    cells = [dict(zip(grids, cell, strict=True)) for cell in itertools.product(*grids.values())]
    return [
        {key: cell[key] if key in cell else what.draw(stream(seed, number, key)) for key, what in space.items()}
        for number in range(draws)
        for cell in cells
    ]


def stream(seed: int, *keys: int | str) -> random.Random:
    """The random numbers of the place that the keys name."""
    return random.Random("/".join(map(str, (seed, *keys))))
