"""Does the faults of the catalogue to a short run of the laptop preset, one by one, and prints what became of them.

Run: python tests/faults/run.py [--quick] [row ...]     (make faults)

After each fault the invariants I1 to I6 are checked (`invariants.py` says how lost and repeated samples are measured).
The exit code is 1 if any row fails.
"""

import argparse
import dataclasses
import os
import random
import shutil
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bed import SAMPLES, Bed
from invariants import Count, Run, every_picture_once_an_epoch
from outcome import NotHere, Outcome
from rows import ROWS, Row

HEAD = "row | fault | survived | seconds to recover | samples lost | samples repeated | seconds in all | what was seen"


@contextmanager
def references() -> Iterator[tuple[Path, Run]]:
    """The cache with the data, and the uninterrupted run, whose use of the pictures is counted."""
    cache = Path(tempfile.mkdtemp(prefix="nnce-faults-"))
    try:
        with Bed(cache) as bed:
            ledger = cache / "ledger"
            bed.start(fault=f"ledger:{ledger}").finish()
            every_picture_once_an_epoch(ledger, next(cache.glob("made-*-0-*")))
            run = Run.of(bed.job)
            assert run.figures[-1][0] == SAMPLES
        yield cache, run
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def injected(row: Row, cache: Path, reference: Run, seed: int = 0) -> Outcome:
    """Does a row's fault to a run of its own. AssertionError or TimeoutError tells what was not survived."""
    random.seed(f"{seed}, {row.title}")
    with Bed(cache) as bed:
        outcome = row.inject(bed, reference)
        note = outcome.note.replace(f"{bed.folder}/", "").replace(os.uname().nodename, "this machine")
        return dataclasses.replace(outcome, note=note)


def line_of(row: Row, cache: Path, reference: Run, seed: int) -> tuple[str, ...]:
    """Injects one row; its line of the table, in the order of HEAD."""
    start = time.monotonic()
    try:
        outcome = injected(row, cache, reference, seed)
    except NotHere as reason:
        return (str(row.number), row.title, "not run", "", "", "", "", str(reason))
    except Exception as error:  # whatever it is, the fault was not survived
        traceback.print_exc()
        return (str(row.number), row.title, "NO", "", "", "", f"{time.monotonic() - start:.0f}", cell(str(error)))
    seconds = "-" if outcome.seconds is None else f"{outcome.seconds:.1f}"
    numbers = (seconds, str(outcome.count.lost), str(outcome.count.repeated), f"{time.monotonic() - start:.0f}")
    survived = "yes" if outcome.count == Count(0, 0) else "NO"
    return (str(row.number), row.title, survived, *numbers, cell(outcome.note))


def cell(text: str) -> str:
    """The beginning of a text, for a cell of a table."""
    return textwrap.shorten(text.replace("|", "/"), 200, placeholder=" ...")


def show(cells: Iterable[str]) -> None:
    """Prints one line of a table in Markdown."""
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the rows that CI runs")
    parser.add_argument("--seed", type=int, default=0, help="of what the test chooses at random")
    parser.add_argument("rows", nargs="*", type=int, help="numbers of the catalogue; all by default")
    arguments = parser.parse_args()
    chosen = [row for row in ROWS if (row.quick or not arguments.quick) and row.number in (arguments.rows or range(99))]
    failed, start, load = 0, time.monotonic(), os.getloadavg()[0]
    with references() as (cache, reference):
        columns = HEAD.split(" | ")
        show(columns)
        show(["---"] * len(columns))
        for row in chosen:
            line = line_of(row, cache, reference, arguments.seed)
            show(line)
            failed += line[2] == "NO"
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"{len(chosen)} rows, {failed} failed; {minutes} min {seconds} s on {os.cpu_count()} CPU cores; ", end="")
    print(f"load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end; seed {arguments.seed}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
