"""Rows about disks and S3: full, failing, slow, cut short, denied, not there."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import processes
from bed import INTERVAL, Attempt, Bed
from invariants import Run, newest_loads
from outcome import NotHere, Outcome, measured
from settings import interrupted
from shards import in_bucket
from witness import records

TIMEOUT = 8.0  # data.s3.timeout, seconds


def failing_then_well(bed: Bed, reference: Run, faults: list[str]) -> Outcome:
    """The run is killed and loses its copies of shards; while it goes on, its fetches meet these faults.

    Then the store is away, also while the run is started once more: every copy is at hand.
    """
    with in_bucket(bed, TIMEOUT) as store:
        interrupted(bed, 2)
        copies = list((bed.folder / "cache").rglob("*.tar"))
        assert copies, "no copies of shards"
        for path in copies:
            path.unlink()
        attempt = bed.start()
        store.fail(faults, len(faults), whole_only=True)  # the first look at the store is impatient
        attempt.reach(4 * INTERVAL)
        assert store.times == 0, f"{store.times} faults were met by nobody"
        repeated = retries(bed)
        store.fail("unavailable")
        attempt.reach(5 * INTERVAL)
        bed.kill(attempt)
        attempt.finish(-signal.SIGKILL)
        bed.start().trained(bed.job)
    return measured(bed, reference, f"{len(faults)} faults met ({repeated}); then the store was away, at a start too")


def wait_for(attempt: Attempt, condition) -> None:
    """Returns when the condition holds or the attempt has ended."""
    processes.wait_until(lambda: condition() or attempt.process.poll() is not None, 120, "what the row waits for")


def retries(bed: Bed) -> str:
    """What the run itself counted of repeated requests."""
    counted = {key.removeprefix("data/retries/"): n for key, n in records(bed.job)[-1].items() if "retries/" in key}
    return ", ".join(f"{n:.0f} {key}" for key, n in counted.items() if n) or "no retries counted"


def unavailable(bed: Bed, reference: Run) -> Outcome:
    """503, SlowDown, 500 and broken connections."""
    return failing_then_well(bed, reference, ["unavailable", "slow down", "internal", "reset"] * 2)


def stalled(bed: Bed, reference: Run) -> Outcome:
    """Answers that never come, and bodies that stop in the middle."""
    return failing_then_well(bed, reference, ["silent", "stalled"])


def truncated(bed: Bed, reference: Run) -> Outcome:
    """Bodies that are cut, shorter than the object, or have a flipped bit."""
    return failing_then_well(bed, reference, ["cut", "short", "flipped"] * 2)


def denied(bed: Bed, reference: Run) -> Outcome:
    """403 and an expired token; the store is not asked again and again, and the right key goes on."""
    with in_bucket(bed, TIMEOUT) as store:
        asked = {}
        for fault, words in (("denied", ("s3:GetObject", "photos")), ("expired", ("ExpiredToken",))):
            store.fail(fault)
            attempt = bed.start()
            line = attempt.refused(*words)
            asked[fault] = store.requests
        assert asked["denied"] <= 2, f"{asked} requests"  # the two patterns, each asked for once
        bed.fault()
        store.fail("nothing", 0)
        bed.start().trained(bed.job)
    return measured(bed, reference, f"{asked['denied']} requests; {line}")


def nowhere_to_write(bed: Bed, reference: Run) -> Outcome:
    """The run's folder is on a file system mounted read-only; the data's bucket is not there."""
    place = bed.folder / "read-only"
    place.mkdir()
    with mounted(place, "ro"):
        line = bed.start(f"run.dir={place}").refused(str(place), "choose another run.dir")
    with in_bucket(bed, TIMEOUT):
        lacking = bed.start("data.train=s3://none/{0..3}.tar", "data.val=s3://none/4.tar").refused("no bucket 'none'")
        bed.fault()
        bed.start().trained(bed.job)
    return measured(bed, reference, f"{line}; {lacking}")


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A file system in memory at a folder."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotHere(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def disk_full(bed: Bed, reference: Run) -> Outcome:
    """A tmpfs too small for any checkpoint is refused; one that fills up during the run ends it with nothing lost."""
    bed.runs.mkdir()
    with mounted(bed.runs, "size=20m"):
        bed.start().refused(str(bed.job), "bytes", code=1)
    with mounted(bed.runs, "size=100m"):
        filler = bed.runs / "filler"
        attempt = bed.start("teacher.training.keep_last=1")
        attempt.reach(2 * INTERVAL)
        fill(filler)
        full = attempt.refused("checkpoint", "bytes", code=1)
        assert newest_loads(bed), "the last checkpoint is gone"
        filler.unlink()
        bed.fault()
        attempt = bed.start("teacher.training.keep_last=2")
        attempt.reach(5 * INTERVAL)
        fill(filler)
        wait_for(attempt, lambda: max(bed.witness.committed) >= 6 * INTERVAL)
        filler.unlink()
        attempt.trained(bed.job)
        return measured(bed, reference, f"{full}; with an older checkpoint that could go training went on")


def fill(path: Path) -> None:
    """Takes all the room that a file system has."""
    with path.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(64 * 1024)):
                pass
        file.truncate(file.tell() - 256 * 1024)  # a few records still fit: they are not what is tested


def nobody_measures(bed: Bed, reference: Run) -> Outcome:
    """The port for Prometheus is taken, and what scrapes the next one never reads the answer."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        attempt = bed.start(f"metrics.port={port}")
        bed.fault()
        said = attempt.finish()
    warnings = [line for line in said.splitlines() if str(port) in line]
    assert len(warnings) == 1, f"warned {len(warnings)} times: {said}"
    return measured(bed, reference, warnings[0])
