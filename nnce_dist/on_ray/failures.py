"""Failures of workers in one line each: what went wrong inside the wrappers that Ray puts around it."""

import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.constants import HANG_DETECTOR_DIRNAME
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import NCCLHangError

from ..config.schema import Workers
from ..training import errors
from ..training.checkpoint import CheckpointError
from .environment import ClusterError
from .watchdog import FOLDER, newly_stalled

# Errors that a new worker group would only meet again; others (a lost peer, a broken device) are worth another try.
FINAL = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, FileNotFoundError)
FINAL += (CheckpointError,)  # tried twice already, or the run is another job's
# Causes, the most telling first: when one rank is gone, the others' collectives fail too.
STALLED, HOST_MEMORY, DIED, LOST, ERROR = CAUSES = ("stalled", "host_memory", "worker_died", "connection_lost", "error")
_LINES = {
    STALLED: "its process does not answer",
    HOST_MEMORY: "the machine ran out of memory and Ray ended this process; use fewer workers per machine (a larger "
    "workers.cpus), a smaller batch or evaluation.batch, or a larger machine",
    DIED: "its process died (killed, or crashed; the system's own out-of-memory killer leaves no other trace)",
    LOST: "it lost its connection to another worker, whose process or node is gone",
}
_HANG = "the collectives of its ranks do not match and stand still, as NCCL reports"


class FinalError(Exception):
    """A worker's error that ends the run at once: its line, and whether it is about the input."""

    @property
    def line(self) -> str:
        """What went wrong, in one line."""
        return self.args[0]

    def as_raised(self) -> Exception:
        """The error to raise in the driver."""
        return ValueError(self.line) if self.args[1] else ClusterError(self.line)


def unwrapped(error: BaseException) -> BaseException:
    """The error inside the wrappers that Ray puts around what a worker raised."""
    for wrapping in ("_base_exc", "health_check_failure", "controller_failure", "cause"):
        if isinstance(inner := getattr(error, wrapping, None), BaseException):
            return unwrapped(inner)
    return error


def cause(error: BaseException) -> str:
    """Which of `CAUSES` an error is."""
    error = unwrapped(error)
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return STALLED
    if "running low on memory" in str(error):  # Ray's monitor; it comes as an error of several types
        return HOST_MEMORY
    if isinstance(error, RayActorError):
        return DIED
    return LOST if re.search("onnection (reset|closed) by peer|Broken pipe", str(error)) else ERROR


def describe(error: BaseException) -> str:
    """One line for an error, whatever Ray has put around it."""
    error = unwrapped(error)
    return error.line if isinstance(error, FinalError) else _LINES.get(cause(error)) or errors.describe(error)


def explained(error: TrainingFailedError, workers: Workers) -> Exception:
    """The driver's error for a failed run of workers."""
    if isinstance(inner := unwrapped(error), FinalError):
        return inner.as_raised()
    if isinstance(error, NCCLHangError):
        return ClusterError(f"{_HANG}; see the folder {FOLDER} of the run (after {workers.restarts} restarts)")
    if isinstance(error, WorkerGroupError):
        return ClusterError(f"{by_rank(error.worker_failures)} (after {workers.restarts} restarts)")
    return inner if isinstance(inner, ClusterError) else ClusterError(f"workers could not be run: {describe(inner)}")


def by_rank(failures: Mapping[int, BaseException]) -> str:
    """The most telling errors of a group in one line."""
    ranked = sorted(failures.items(), key=lambda item: (CAUSES.index(cause(item[1])), item[0]))
    return "; ".join(f"rank {rank}: {describe(error)}" for rank, error in ranked[:2])


def why_restarted(
    failures: Mapping[int, BaseException], workers: Workers, run_dir: Path, hang: Path | None = None
) -> tuple[str, str]:
    """(cause, line) of the failures by rank, or the `hang` that was kept, for which workers are started again."""
    if hang:
        return STALLED, f"{_HANG}; see {hang}"
    if stacks := newly_stalled(run_dir):
        seconds = f"{workers.stall_timeout:g} s (workers.stall_timeout)"
        return STALLED, f"no progress for {seconds}; its stacks are in {', '.join(map(str, stacks))}"
    first = min((cause(error) for error in failures.values()), key=CAUSES.index)
    return first, by_rank(failures) if workers.count > 1 else describe(failures[0])


def keep_hang(bookkeeping: Path, run_dir: Path) -> Path | None:
    """Moves what Ray Train's detector has found of a hang, the ranks' stacks too, to the run's folder; None: nothing.

    It lies in Ray Train's own folder for the run, which goes with the run's end.
    """
    found, kept = bookkeeping / HANG_DETECTOR_DIRNAME, Path(run_dir) / FOLDER / f"nccl-{uuid.uuid4().hex[:8]}"
    if not found.exists():
        return None
    kept.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(found, kept))
