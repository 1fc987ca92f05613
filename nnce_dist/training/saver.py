"""Saving in the background: a copy to host memory at the step's boundary, the rest while training goes on."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from ..config import schema
from . import checkpoint, retention
from .checkpoint import CheckpointError, Guard, Unguarded
from .mirror import Mirror, Uploads
from .state import HostCopy, Snapshot, TrainState

PATIENCE = 240.0  # seconds until a save is given up; less than ranks wait for each other, so that the cause is told


class Saver:
    """Saves one run's states, one at a time. Rank 0 alone uses it.

    `facts` are words that must be the same when training goes on from a checkpoint (the data's digest); `grace` is how
    long the last save may take after a stop was asked for, in seconds. Every commit is copied to the `mirror`, if there
    is one, and `say` is told when that does not work.
    """

    def __init__(
        self,
        directory: Path,
        guard: Guard | None = None,
        facts: Mapping[str, str] | None = None,
        grace: float = 30.0,
        mirror: Mirror | None = None,
        say: Callable[[str], None] = print,
    ):
        self.directory, self.guard, self.facts, self.grace = directory, guard or Unguarded(), dict(facts or {}), grace
        self.mirror, self._uploads = mirror, Uploads(mirror, say) if mirror else None
        self._host, self._saving = HostCopy(), Future()
        self._stalled, self._written = 0.0, {}
        self._saving.set_result(None)
        self._end = math.inf  # on the monotonic clock

    @property
    def figures(self) -> dict[str, float]:
        """What saving costs, for the log (see `metrics/names.py`)."""
        return {"checkpoint_stall_seconds": self._stalled, **self._written}

    def hurry(self) -> None:
        """From now on nothing may take longer than the grace period: the process was asked to stop."""
        self._end = time.monotonic() + self.grace

    def prepare(self, state: TrainState, training: schema.Training) -> None:
        """Clears up after killed processes. Raises ValueError if the disk cannot hold the checkpoints."""
        checkpoint.remove_unfinished(self.directory)
        newest = checkpoint.at(self.directory, state.samples_seen)
        if self._uploads and newest.exists():  # not so where a pack begins with its trials' own states
            self._uploads.offer(newest, training)
        if state.samples_seen < training.samples:
            retention.require_space(self.directory, state.num_bytes(), training)

    def save(self, state: TrainState, training: schema.Training) -> None:
        """Copies the state and returns; the checkpoint is committed later. Raises what went wrong with the last one."""
        start = time.perf_counter()
        self.wait()
        snapshot = Snapshot(self._host.take(state.tensors()), {**state.scalars(), **self.facts})
        self._saving = Future()
        threading.Thread(target=self._work, args=(self._saving, snapshot, training), name="saver", daemon=True).start()
        self._stalled += time.perf_counter() - start

    def raise_failure(self) -> None:
        """Raises what went wrong with a save that has ended; does not wait."""
        if self._saving.done():
            self._saving.result()
        if self._uploads:
            self._uploads.raise_failure()

    def wait(self) -> None:
        """Returns when the last save is committed. Raises CheckpointError after a deadline, or what went wrong."""
        patience = self._patience()
        try:
            self._saving.result(patience)
        except TimeoutError:
            raise CheckpointError(
                f"{self.directory}: a checkpoint was not written within {patience:.0f} s; does the disk hang?"
            ) from None

    def wait_for_copy(self) -> None:
        """Returns when the last commit is in the mirror as well. Raises CheckpointError after a deadline."""
        if self._uploads:
            self._uploads.wait(self._patience())

    def _patience(self) -> float:
        return max(min(PATIENCE, self._end - time.monotonic()), 0.0)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, *_) -> None:
        """Lets a save end that was under way when training failed, its state is good; begins no more uploads."""
        if kind and issubclass(kind, Exception) and not issubclass(kind, CheckpointError):
            with suppress(Exception):
                self.wait()
        if self._uploads:
            self._uploads.close()

    def _work(self, done: Future, snapshot: Snapshot, training: schema.Training) -> None:
        start = time.perf_counter()
        try:
            path = self._write(snapshot)
            if self._uploads:
                self._uploads.offer(path, training)
            retention.drop_surplus(self.directory, training, [self._uploads.uploading] if self._uploads else [])
            seconds = time.perf_counter() - start
            self._written = {"checkpoint_seconds": seconds, "checkpoint_bytes": checkpoint.size(path)}
            done.set_result(None)
        except BaseException as error:  # raised again in the training thread
            done.set_exception(error)

    def _write(self, snapshot: Snapshot) -> Path:
        """The new checkpoint, at the second try perhaps."""
        try:
            return checkpoint.write(self.directory, snapshot, self.guard)
        except OSError as error:
            if error.errno in retention.FULL:
                retention.make_room(self.directory)
        try:
            return checkpoint.write(self.directory, snapshot, self.guard)
        except OSError as error:
            raise CheckpointError(self._failure(snapshot, error)) from error

    def _failure(self, snapshot: Snapshot, error: OSError) -> str:
        num_bytes = sum(tensor.nbytes for tensor in snapshot.tensors.values())
        newest = max(checkpoint.committed(self.directory), default=None)
        stays = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint"
        return (
            f"{checkpoint.at(self.directory, snapshot.scalars['samples_seen'])}: a checkpoint of {num_bytes} bytes "
            f"cannot be written, tried twice ({error.strerror or error}); {stays}; make room and run again to continue"
        )
