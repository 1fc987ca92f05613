"""What became of the parts of a sweep's trials: all that a strategy decides on, kept in a file that survives a crash.

A trial is trained in segments: from where it is to a number of samples. Strategies are functions of the history alone,
and never ask who came first; so a sweep that was killed and started again decides as one that was not.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from .space import Point


@dataclass(frozen=True)
class Segment:
    """A part of a trial that can begin."""

    trial: int
    samples: int  # samples seen at its end
    point: Point = field(hash=False)  # its settings
    source: int | None = None  # begins with the state of this trial, where that was at the end of the segment before
    start: int = 0  # samples seen at its start
    cohort: int = 0  # segments that have this, start and samples in common are ready at one moment: they may be packed


@dataclass(frozen=True)
class Outcome:
    """What became of a segment."""

    trial: int
    samples: int
    point: Point = field(hash=False)
    value: float | None = None  # of the sweep's metric; None where the trial failed
    source: int | None = None
    error: str = ""


class Strategy(Protocol):
    """Which segments a sweep trains."""

    def segments(self, history: "History") -> list[Segment]:
        """Every segment that can begin now and has no outcome yet, the most urgent first.

        None of them, while none is being trained, is the end of the sweep.
        """

    def settled(self, history: "History") -> int:
        """Samples from which on the next start tries again what failed; on what ended before, others depend."""
        return 0


class History(Mapping[tuple[int, int], Outcome]):
    """Outcomes by (trial, samples), in a file with a line each; `mode` says whether a low or a high value is good."""

    def __init__(self, path: Path | None = None, mode: str = "min"):
        self._path, self._mode = path, mode
        self._story = list(_read(path)) if path else []
        self._outcomes = {(one.trial, one.samples): one for one in self._story}

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome: it is on disk when this returns."""
        self._story.append(outcome)
        self._outcomes[outcome.trial, outcome.samples] = outcome
        if self._path:
            _append(self._path, outcome)

    def forget_failures(self, settled: int) -> None:
        """Lets failed segments that end there or later be trained again; the file keeps their story."""
        self._outcomes = {key: one for key, one in self.items() if not one.error or one.samples < settled}

    def asked_for(self, strategy: Strategy) -> "History":
        """The outcomes that a strategy asks for: not those of verdicts that changed when a trial was tried again."""
        found = History(mode=self._mode)
        while asked := {(one.trial, one.samples) for one in strategy.segments(found)} & self.keys():
            for key in sorted(asked):
                found.add(self[key])
        return found

    def when(self, keys: Iterable[tuple[int, int]]) -> "History":
        """As it was when all of these had come for the first time: what was decided then stays decided."""
        then, awaited = History(mode=self._mode), set(keys)
        for outcome in self._story:
            if not awaited:
                break
            then.add(outcome)
            awaited.discard((outcome.trial, outcome.samples))
        return then

    def score(self, trial: int, samples: int) -> float:
        """The value there, lower is better; inf for one that failed or diverged."""
        value = self[trial, samples].value
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self._mode == "min" else -value

    def __getitem__(self, key: tuple[int, int]) -> Outcome:
        return self._outcomes[key]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)


def _read(path: Path) -> Iterator[Outcome]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):  # the last one may be torn by a crash; its segment is trained again, from its end
            yield Outcome(**json.loads(line))


def _append(path: Path, outcome: Outcome) -> None:
    content = path.read_bytes() if path.exists() else b""
    with open(path, "r+b" if content else "wb") as file:
        file.seek(content.rfind(b"\n") + 1)
        file.truncate()
        file.write(json.dumps(asdict(outcome)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
