"""Rows about settings, code and clocks that are not what they were, and about two jobs on one run."""

import os
import re
import signal
import time

from bed import INTERVAL, Attempt, Bed
from invariants import Run, newest_loads
from outcome import Outcome, measured

QUICK = 2.0  # seconds in which a mistyped setting is answered on an idle machine
SLACK = 4.0  # tests share their cores


def interrupted(bed: Bed, intervals: int = 3, **where: int) -> Attempt:
    """A run that is killed in the middle."""
    attempt = bed.start(**where)
    attempt.reach(intervals * INTERVAL)
    bed.kill(attempt)
    attempt.finish(-signal.SIGKILL)
    return attempt


def other_network(bed: Bed, reference: Run) -> Outcome:
    """The run is continued with other widths; refused with the difference, and nothing is touched."""
    interrupted(bed)
    newest = newest_loads(bed)
    line = bed.start("network.widths=[32,64]").refused("network.widths: [32, 128] there, [32, 64] now", "allow_drift")
    assert newest_loads(bed) == newest
    bed.start().trained(bed.job)
    return measured(bed, reference, line)


def other_world_size(bed: Bed, reference: Run) -> Outcome:
    """Begun by two Ray workers, continued by one process; a number that cannot share the batch is refused."""
    attempt = bed.start(workers=2)
    attempt.reach(3 * INTERVAL)
    bed.kill(attempt, signal.SIGTERM)
    attempt.finish(128 + signal.SIGTERM)
    line = bed.start(workers=3).refused("teacher.training.batch=32", "workers.count=3")
    bed.start().trained(bed.job)
    return measured(bed, reference, f"2 workers, then 1; 3: {line}")


def mistyped(bed: Bed, reference: Run) -> Outcome:
    """A key, a type, a range and a NaN: all are listed, before anything is loaded."""
    wrong = ["run.sed=1", "run.seed=x", "teacher.training.batch=0", "objective.noise_magnitude=nan"]
    attempt = bed.start(*wrong)
    bed.fault()
    line = attempt.refused("nearest: 'run.seed'", "run.seed=x", "teacher.training.batch", "objective.noise_magnitude")
    seconds = time.monotonic() - attempt.started
    assert seconds < QUICK * SLACK, f"answered after {seconds:.1f} s"
    assert not bed.runs.exists()
    bed.start().trained(bed.job)
    return measured(bed, reference, f"answered in {seconds:.1f} s: {line}")


def two_jobs(bed: Bed, reference: Run) -> Outcome:
    """The command is started a second time while it runs; when the first is killed, its claim is taken over."""
    first = bed.start()
    first.reach(INTERVAL)
    line = bed.start().refused(str(first.process.pid), os.uname().nodename)
    assert first.process.poll() is None
    first.reach(3 * INTERVAL)
    bed.kill(first)
    first.finish(-signal.SIGKILL)
    bed.start().trained(bed.job)
    return measured(bed, reference, re.sub(r"^/\S*/", "", line))


def clock_off(bed: Bed, reference: Run) -> Outcome:
    """The wall clock goes back an hour during the run; then the newest checkpoints are the oldest by their files."""
    attempt = bed.start(fault=f"clock:{INTERVAL}:-3600")
    attempt.reach(3 * INTERVAL)
    bed.kill(attempt)
    attempt.finish(-signal.SIGKILL)
    newest = newest_loads(bed)
    for age, path in enumerate(reversed(bed.checkpoints())):
        for file in (path, *path.iterdir()):
            os.utime(file, (1e9 - 1e6 * age, 1e9 - 1e6 * age) if path == newest else None)
    bed.start(fault=f"clock:{4 * INTERVAL}:+31536000").trained(bed.job)
    assert all(position >= int(newest.name) for position in bed.witness.resumed_at)
    return measured(bed, reference, "an hour back, a year ahead, mtimes turned round")
