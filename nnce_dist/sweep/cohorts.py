"""Trials that become ready at one moment, in parts that may share a process."""

import math
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def evenly(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Consecutive parts of at most so many, whose sizes differ by one at most."""
    count = math.ceil(len(items) / most)
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]


def cohorts(trials: Sequence[int], most: int, first: int = 0) -> dict[int, int]:
    """The part of each trial, in parts of at most so many by their place; the parts are numbered from `first` on."""
    return {trial: number for number, part in enumerate(evenly(trials, most), first) for trial in part}
