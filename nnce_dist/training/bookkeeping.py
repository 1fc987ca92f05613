"""What is due between two steps: a log line, a checkpoint, the end on request; all at fixed numbers of samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..config import schema
from ..samplers.divergence import DivergedError
from .checkpoint import CheckpointError
from .pace import Pace
from .resume import resume, share
from .runtime import Runtime, gathered
from .saver import Saver
from .state import TrainState
from .step import NonFiniteError
from .stopping import Stopped


class Recorder(Protocol):
    """Where observations go."""

    def resume(self, samples_seen: int, pending: Mapping[str, Tensor]) -> None:
        """Training goes on from here, with what was `pending` here; what was recorded beyond is forgotten."""

    def observe(self, prefix: str, observations: Mapping[str, Tensor]) -> None:
        """Adds per-sample observations, each (b,)."""

    def pending(self) -> dict[str, Tensor]:
        """What this rank has observed since the last flush: sum and count (2,) by name."""

    def flush(self, samples_seen: int, **scalars: float) -> dict[str, float]:
        """Averages over samples and ranks since the last flush, sends them to the sinks, returns them."""


def crossed(samples_seen: int, batch: int, interval: int) -> bool:
    """True if a multiple of the interval lies within the last batch; interval 0 never."""
    return interval > 0 and samples_seen // interval > (samples_seen - batch) // interval


@dataclass(frozen=True)
class Bookkeeper:
    """Writes down how training goes; every rank has one, rank 0's writes."""

    training: schema.Training
    runtime: Runtime
    recorder: Recorder
    saver: Saver
    say: Callable[[str], None]
    pace: Pace
    end: int  # samples at which training ends, for now

    def open(self, state: TrainState) -> None:
        """Goes on from the newest whole checkpoint, if there is one."""
        _, story = resume(self.saver, state, self.training.samples, self.runtime)
        self.recorder.resume(state.samples_seen, share(state.observed, self.runtime))
        if self.runtime.rank == 0:
            self.saver.prepare(state, self.training)
            self._tell(story)

    def roll_back(self, state: TrainState, error: NonFiniteError | DivergedError) -> None:
        """Takes the state back to the last checkpoint, at half the learning rate from now on.

        Raises the error where that is not asked for, was done before, or has no checkpoint to go to.
        """
        if not self.training.rollback or state.rate < 1:
            raise error
        self.saver.wait()
        self.runtime.barrier()
        found, story = resume(self.saver, state, self.training.samples, self.runtime)
        if not found:
            raise error
        state.rate = 0.5
        self.recorder.resume(state.samples_seen, share(state.observed, self.runtime))
        self._tell(f"rolled back, at half the learning rate: {error}; {story}")

    def _tell(self, story: str) -> None:
        if story and self.runtime.rank == 0:
            self.say(story)

    def after_step(self, state: TrainState) -> None:
        """Does what is due. Raises `Stopped` after saving, or what went wrong with an earlier save."""
        if self.runtime.rank == 0:
            self.saver.raise_failure()
        self.pace.step()
        done = state.samples_seen >= self.end
        if done or self._due(state, self.training.log_every):
            self._log(state)
        if (stopping := self.runtime.stop_signal()) and not done:
            self._stop(stopping, state)
        if done or self._due(state, self.training.checkpoint_every):
            self._save(state)

    def close(self) -> None:
        """Returns when the last checkpoint is committed, in the mirror too."""
        self.saver.wait()
        self.saver.wait_for_copy()
        self.runtime.barrier()

    def _due(self, state: TrainState, interval: int) -> bool:
        return crossed(state.samples_seen, self.training.batch, interval)

    def _log(self, state: TrainState) -> None:
        if self.runtime.rank == 0:
            self.saver.guard.check()  # two jobs must not write one log
        figures = self.saver.figures | self.pace.figures()
        record = self.recorder.flush(state.samples_seen, skipped_steps=state.skipped_steps, **figures)
        state.figure = self._figure(record, state)

    def _figure(self, record: Mapping[str, float], state: TrainState) -> float | None:
        """What `training.keep_best` names, if anything; None, too, where all steps of its network were left out."""
        name = self.training.keep_best
        seen = any(key.partition("/")[0] == name.partition("/")[0] for key in record)
        if name and name not in record and (seen or not state.skipped_steps):
            names = ", ".join(sorted(key for key in record if "/" in key))
            raise ValueError(f"training.keep_best={name!r} is no figure of this training; there are: {names}")
        return record.get(name)

    def _save(self, state: TrainState) -> None:
        state.observed = {}
        if pending := self.recorder.pending():
            ranks = gathered(self.runtime, torch.stack([*pending.values()]))  # (ranks, names, 2)
            state.observed = dict(zip(pending, ranks.unbind(1), strict=True))
        if self.runtime.rank == 0:
            self.saver.save(state, self.training)

    def _stop(self, signal_number: int, state: TrainState) -> None:
        where, trouble = f"{state.samples_seen:,} samples", "not saved"
        self.saver.hurry()
        try:
            self._save(state)
            self.saver.wait()
            trouble = "saved here alone"
            self.saver.wait_for_copy()
        except CheckpointError as error:
            where += f", which are {trouble}: {error}"
        self.runtime.barrier()
        raise Stopped(signal_number, where)
