"""Kills one training run at random moments, starts it with the same command each time, and compares the end.

Run: python tests/faults/chaos.py [--kills 20] [--seed 0]

The run is the short one of `bed.py` with two Ray workers, made longer. A kill comes when the log has reached a random
position, and up to two seconds later; where that position is behind, it hits the start that the kill before has caused.
It takes the command's process, a worker, the node's raylet (SIGKILL), or asks the command to stop (SIGTERM).

Goodput is useful step time, which is the sum of the final log's step times (a step that was done again counts once),
over the wall time; and over the wall time without the starts, each from the command to its first step. The run's own
metric of that name is shown beside it: its time is that of the log, without the first start and the end.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from bed import BATCH, Attempt, Bed
from invariants import Run, newest_loads, verify
from killed import ray_workers
from witness import records

KINDS = ("driver", "worker", "node", "SIGTERM")
LONGEST = 3600.0  # seconds


def strike(kind: str, bed: Bed, attempt: Attempt) -> str:
    """Kills what the kind says, or the command's process where that is not there yet; gives what was killed."""
    victims = {"worker": ray_workers(bed), "node": bed.pids("raylet/raylet")}.get(kind, [])
    number = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
    if kind in ("worker", "node") and not victims:
        kind = "driver"
    with suppress(ProcessLookupError):
        os.kill(random.choice(victims or [attempt.process.pid]), number)
    return kind


class Chaos:
    """One run with its kills."""

    def __init__(self, bed: Bed, kills: int, samples: int):
        self.bed, self.starting = bed, 0.0
        self.kills = sorted((random.uniform(0, samples), random.uniform(0, 2)) for _ in range(kills))
        self.hit: list[str] = []
        self._start()

    def run(self) -> float:
        """Goes on until the run is trained; the wall time in seconds."""
        start = time.monotonic()
        while not (self.bed.job / "result.json").exists():
            assert time.monotonic() - start < LONGEST, "I1: not trained"
            self._start_again()
            self._kill()
            time.sleep(0.05)
        assert not self.kills, f"{len(self.kills)} kills came too late"
        return time.monotonic() - start

    def _start_again(self) -> None:
        """The same command, where it has ended; counts how long starts take."""
        if self.attempt.process.poll() is not None:
            self.attempt.finish(*(0, 1, 128 + signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM))
            newest_loads(self.bed)
            self._start()
        elif self._waiting and self.bed.witness.moved > self.attempt.started:
            self.starting += self.bed.witness.moved - self.attempt.started
            self._waiting = False

    def _start(self) -> None:
        self.attempt, self._waiting = self.bed.start(workers=2), True

    def _kill(self) -> None:
        if not self.kills or self.bed.witness.highest < self.kills[0][0]:
            return
        time.sleep(self.kills.pop(0)[1])
        self.hit.append(strike(random.choice(KINDS), self.bed, self.attempt))
        print(f"kill {len(self.hit)}: {self.hit[-1]} at {self.bed.witness.position} samples", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    samples = 8 * BATCH * max(arguments.kills, 4)
    cache = Path(tempfile.mkdtemp(prefix="nnce-chaos-"))
    try:
        with Bed(cache) as bed:
            bed.settings.append(f"teacher.training.samples={samples}")
            bed.start().trained(bed.job)
            reference = Run.of(bed.job)
        with Bed(cache) as bed:
            bed.settings.append(f"teacher.training.samples={samples}")
            chaos = Chaos(bed, arguments.kills, samples)
            wall = chaos.run()
            chaos.attempt.trained(bed.job)
            count = verify(bed, reference)
            useful = sum(record["step_seconds"] for record in records(bed.job))
            exported = records(bed.job)[-1]["goodput"]
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    kinds = ", ".join(f"{chaos.hit.count(kind)} x {kind}" for kind in KINDS)
    print(f"{len(chaos.hit)} kills ({kinds}), {len(bed.attempts)} starts, {len(bed.witness.resumed_at)} steps back")
    print(f"samples lost {count.lost}, repeated {count.repeated}; loss curve and weights equal the uninterrupted run's")
    print(f"useful {useful:.0f} s, wall {wall:.0f} s, of which starting {chaos.starting:.0f} s")
    print(f"goodput {useful / wall:.3f}; of the time without starts {useful / (wall - chaos.starting):.3f}; ", end="")
    print(f"by the run's own metric {exported:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
