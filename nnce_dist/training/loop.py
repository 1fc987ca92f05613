"""The training loop: batches in, a task's updates in order, checkpoints and log lines at fixed numbers of samples."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..config import schema
from ..tasks.task import Batch, Task
from . import checkpoint
from .runtime import Runtime, mean_over_ranks
from .seeding import SampleRandom
from .state import TrainState, learning_rate_factor
from .step import NonFiniteError, apply_update
from .stopping import Stopped


class Stream(Protocol):
    """Training data whose position is the number of samples seen."""

    def batches(
        self, seed: int, start_samples_seen: int, global_batch: int, rank: int, world_size: int
    ) -> Iterator[Batch]:
        """This rank's share of every global batch from a position on, without end."""


class Recorder(Protocol):
    """Where observations go."""

    def resume(self, samples_seen: int) -> None:
        """Training goes on from here; what was recorded beyond is forgotten."""

    def observe(self, prefix: str, observations: Mapping[str, Tensor]) -> None:
        """Adds per-sample observations, each (b,)."""

    def flush(self, samples_seen: int, **scalars: float) -> dict[str, float]:
        """Averages over samples and ranks since the last flush, sends them to the sinks, returns them."""


def check(training: schema.Training, runtime: Runtime) -> None:
    """Raises ValueError if the counts do not fit together."""
    if training.batch % runtime.world_size:
        raise ValueError(
            f"training.batch={training.batch} cannot be shared equally by {runtime.world_size} workers; "
            "choose a multiple, or another workers.count"
        )


def train(
    task: Task,
    stream: Stream,
    training: schema.Training,
    seed: int,
    runtime: Runtime,
    recorder: Recorder,
    directory: Path,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Trains a task for `training.samples` samples, going on from the newest checkpoint in `directory`.

    Raises `Stopped` after saving when the runtime is asked to stop, `NonFiniteError` when more steps than
    `training.max_skipped_steps` had a gradient that is not finite.
    """
    check(training, runtime)
    state = TrainState.of(task)
    _to(state, runtime.device)
    if checkpoint.restore_newest(directory, state, say) and runtime.rank == 0:
        say(f"continuing at {state.samples_seen:,} of {training.samples:,} samples from {directory}")
    recorder.resume(state.samples_seen)
    batches = stream.batches(seed, state.samples_seen, training.batch, runtime.rank, runtime.world_size)
    while state.samples_seen < training.samples:
        iterate(state, _moved(next(batches), runtime.device), training, seed, runtime, recorder)
        stopping = runtime.stop_signal()
        done = state.samples_seen >= training.samples
        if done or stopping or crossed(state.samples_seen, training.batch, training.log_every):
            recorder.flush(state.samples_seen, skipped_steps=state.skipped_steps)
        if done or stopping or crossed(state.samples_seen, training.batch, training.checkpoint_every):
            _commit(directory, state, runtime)
        if stopping and not done:
            raise Stopped(stopping, state.samples_seen)
    return state


def crossed(samples_seen: int, batch: int, interval: int) -> bool:
    """True if a multiple of the interval lies within the last batch; interval 0 never."""
    return interval > 0 and samples_seen // interval > (samples_seen - batch) // interval


def iterate(
    state: TrainState, batch: Batch, training: schema.Training, seed: int, runtime: Runtime, recorder: Recorder
) -> None:
    """One iteration: every update of the task in order, then the averages."""
    first = state.samples_seen + runtime.rank * len(batch)
    random = SampleRandom.at(seed, range(first, first + len(batch)), runtime.device)
    torch.manual_seed(seed ^ first)  # dropout, the one draw that belongs to no sample
    for trainee in state.trainees.values():
        trainee.set_learning_rate(learning_rate_factor(state.samples_seen, training.samples, trainee.settings))
    for update in state.task.updates(batch, random, state.samples_seen, partial(mean_over_ranks, runtime)):
        trainee = state.trainees[update.network]
        if not apply_update(update, trainee, runtime, training.micro_batch, recorder.observe):
            _skip(state, update.network, training)
    state.samples_seen += training.batch
    for trainee in state.trainees.values():
        trainee.update_ema(training.batch, state.samples_seen)


def _skip(state: TrainState, network: str, training: schema.Training) -> None:
    state.skipped_steps += 1
    if state.skipped_steps > training.max_skipped_steps:
        raise NonFiniteError(
            f"the gradient of {network!r} is not finite at {state.samples_seen:,} samples "
            f"({state.skipped_steps} such steps, {training.max_skipped_steps} tolerated); nothing was moved; lower the "
            "learning rate or set training.max_skipped_steps"
        )


def _commit(directory: Path, state: TrainState, runtime: Runtime) -> None:
    if runtime.rank == 0:
        checkpoint.save(directory, state)
    runtime.barrier()


def _to(state: TrainState, device: torch.device) -> None:
    for trainee in state.trainees.values():
        trainee.network.to(device)
        if trainee.ema is not None:
            trainee.ema.to(device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    return Batch(batch.x.to(device, non_blocking=True), labels)
