"""Rows about processes that are killed, stopped or told to go."""

import os
import random
import signal

import processes
from bed import INTERVAL, Bed
from invariants import Run, newest_loads
from outcome import Outcome, measured

GRACE = 30.0  # seconds in which a run on an idle machine saves and leaves


def ray_workers(bed: Bed) -> list[int]:
    """The processes of Ray Train's workers that train."""
    return bed.pids("ray::RayTrainWorker")


def worker_killed(bed: Bed, reference: Run) -> Outcome:
    """One of two workers gets SIGKILL; Ray Train starts the group again, from the newest checkpoint."""
    attempt = bed.start(workers=2)
    attempt.reach(3 * INTERVAL)
    bed.fault()
    os.kill(random.choice(ray_workers(bed)), signal.SIGKILL)
    attempt.trained(bed.job)
    return measured(bed, reference, "the group started again by itself")


def head_and_driver_killed(bed: Bed, reference: Run) -> Outcome:
    """The control store and the driver get SIGKILL, and the same command goes on at once: the worker that nobody has
    told yet writes no more. What is left of the first Ray goes by itself."""
    attempt = bed.start(workers=1)
    attempt.reach(3 * INTERVAL)
    for pid in bed.pids("gcs_server"):
        os.kill(pid, signal.SIGKILL)
    bed.kill(attempt)
    attempt.finish(-signal.SIGKILL)
    newest_loads(bed)
    left = set(processes.marked(bed.mark))
    bed.start(workers=1).trained(bed.job)
    processes.wait_until(lambda: not left & set(processes.marked(bed.mark)), 180, "the end of the first Ray")
    return measured(bed, reference, f"{len(left)} processes were left when the same command went on, none at the end")


def told_to_stop(bed: Bed, reference: Run) -> Outcome:
    """SIGTERM, then SIGINT after the next start, save after the step; nothing is done twice."""
    for number, position in ((signal.SIGTERM, 2 * INTERVAL), (signal.SIGINT, 4 * INTERVAL)):
        attempt = bed.start()
        attempt.reach(position)
        bed.kill(attempt, number)
        said = attempt.finish(128 + number, within=GRACE)
        newest = newest_loads(bed)
        assert int(newest.name) == bed.witness.highest, f"stopped after {bed.witness.highest}, saved {newest}: {said}"
    bed.start().trained(bed.job)
    assert bed.witness.resumed_at == [], "I2: steps were done again"
    return measured(bed, reference, "exit 143 and 130, no step done again")


def told_to_stop_on_ray(bed: Bed, reference: Run) -> Outcome:
    """SIGTERM to the driver of two Ray workers."""
    attempt = bed.start(workers=2)
    attempt.reach(3 * INTERVAL)
    bed.kill(attempt, signal.SIGTERM)
    attempt.finish(128 + signal.SIGTERM, within=2 * GRACE)
    newest = newest_loads(bed)
    assert int(newest.name) == bed.witness.highest, f"stopped after {bed.witness.highest}, saved {newest}"
    bed.start(workers=2).trained(bed.job)
    return measured(bed, reference, "exit 143, no step done again")


def killed_while_saving(bed: Bed, reference: Run) -> Outcome:
    """SIGKILL at random points of saves; at last the newest checkpoint is cut to half as well."""
    for _ in range(4):
        attempt = bed.start(fault=f"kill-in-save:{random.randint(1, 20)}")
        attempt.finish(-signal.SIGKILL)
        newest_loads(bed)
    bed.fault()
    damaged = bed.checkpoints()[-1:]
    for path in damaged:
        os.truncate(path / "state.safetensors", (path / "state.safetensors").stat().st_size // 2)
    said = passed_over(bed, [path.name for path in damaged])
    return measured(bed, reference, said)


def passed_over(bed: Bed, names: list[str]) -> str:
    """Runs to the end; the damaged checkpoints must be named on the way. Gives that line."""
    attempt = bed.start()
    attempt.trained(bed.job)
    lines = (bed.job / "metrics.jsonl").read_text().splitlines() + attempt.printed.splitlines()
    told = [line for line in lines if "passed over" in line and all(name in line for name in names)]
    assert told or not names, f"nobody was told that {names} cannot be used"
    return f"{len(names)} damaged checkpoint(s) named and passed over"


def bit_rot(bed: Bed, reference: Run) -> Outcome:
    """A bit of the newest checkpoint flips while nobody runs."""
    attempt = bed.start()
    attempt.reach(5 * INTERVAL)
    bed.kill(attempt)
    attempt.finish(-signal.SIGKILL)
    newest = newest_loads(bed)
    flip(newest / "state.safetensors")
    return measured(bed, reference, passed_over(bed, [newest.name]))


def flip(path, position: int = -100) -> None:
    """Flips the lowest bit of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
