"""The training loop: batches in, a task's updates in order; what is due between steps is `bookkeeping.py`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..config import schema
from ..data.shards import rank_share
from ..models.dropout import belonging_to
from ..samplers.divergence import DivergedError
from ..tasks.task import Batch, LossAndObservations, Task, Update
from .bookkeeping import Bookkeeper, Recorder
from .pace import Pace
from .runtime import Runtime, mean_over_ranks
from .saver import Saver
from .seeding import SampleRandom, dropout_keys, seed_default_generator
from .state import TrainState
from .step import NonFiniteError, apply_update


class Stream(Protocol):
    """Training data whose position is the number of samples seen."""

    digest: str  # identifies the data

    def batches(
        self, seed: int, start_samples_seen: int, global_batch: int, rank: int, world_size: int, micro_batch: int
    ) -> Iterator[Batch]:
        """This rank's share (`data.shards.rank_share`) of every global batch from a position on, without end."""


def train(
    task: Task,
    stream: Stream,
    training: schema.Training,
    seed: int,
    runtime: Runtime,
    recorder: Recorder,
    saver: Saver,
    say: Callable[[str], None] = print,
    until: int | None = None,
) -> TrainState:
    """Trains a task for `training.samples` samples, going on from the newest whole checkpoint in the saver's folder.

    With `until` it ends, after saving, at so many samples, and goes on the next time as if it had not.

    Raises `Stopped` after saving when the runtime is asked to stop, `NonFiniteError` when more steps than
    `training.max_skipped_steps` had a gradient that is not finite, `DivergedError` when a sampler's samples are no
    pictures any more, `CheckpointError` when a state cannot be saved.
    """
    state = TrainState.of(task)
    for _ in steps(state, stream, training, seed, runtime, recorder, saver, say, until):
        pass
    return state


def steps(
    state: TrainState,
    stream: Stream,
    training: schema.Training,
    seed: int,
    runtime: Runtime,
    recorder: Recorder,
    saver: Saver,
    say: Callable[[str], None],
    until: int | None = None,
) -> Iterator[TrainState]:
    """Trains as `train` does and gives the state after every step, so that several trainings can take turns."""
    to_device(state, runtime.device)
    end = training.samples if until is None else until
    books = Bookkeeper(training, runtime, recorder, saver, say, Pace(runtime, say), end)
    with saver:
        books.open(state)
        try:
            yield from _advance(state, stream, seed, books)
        except (NonFiniteError, DivergedError) as error:
            books.roll_back(state, error)
            yield from _advance(state, stream, seed, books)
        books.close()


def _advance(state: TrainState, stream: Stream, seed: int, books: Bookkeeper) -> Iterator[TrainState]:
    """Iterates from the state's position to the end."""
    training, runtime = books.training, books.runtime
    ranks = runtime.rank, runtime.world_size
    batches = stream.batches(seed, state.samples_seen, training.batch, *ranks, training.micro_batch)
    while state.samples_seen < books.end:
        iterate(state, next(batches), training, seed, runtime, books.recorder)
        books.after_step(state)
        yield state


def iterate(
    state: TrainState, batch: Batch, training: schema.Training, seed: int, runtime: Runtime, recorder: Recorder
) -> None:
    """One iteration: every update of the task in order, then the averages."""
    batch, size, micro_batch = _moved(batch, runtime.device), training.batch, training.micro_batch
    ids = rank_share(state.samples_seen, size, runtime.rank, runtime.world_size, micro_batch)
    random = SampleRandom.at(seed, ids, runtime.device)
    seed_default_generator(seed ^ ids.start, runtime.device)  # for what draws without a stream, in somebody's network
    for trainee in state.trainees.values():
        trainee.set_learning_rate(state.samples_seen, training.samples, state.rate)
    moved, mean = set(), partial(mean_over_ranks, runtime, len(batch) / size)
    for number, update in enumerate(state.task.updates(batch, random, state.samples_seen, mean)):
        update = with_own_dropout(update, partial(dropout_keys, seed, update=number, device=runtime.device), ids)
        if apply_update(update, state.trainees[update.network], runtime, size, micro_batch, recorder.observe):
            moved.add(update.network)
        else:
            _skip(state, update.network, training)
    state.samples_seen += size
    for network in moved:
        state.trainees[network].update_ema(size, state.samples_seen)


def with_own_dropout(update: Update, keys: Callable[..., Tensor], ids: range) -> Update:
    """The update with dropout masks that belong to its samples `ids`."""

    def loss(part: slice) -> LossAndObservations:
        with belonging_to(lambda: keys(ids=ids[part])):
            return update.loss(part)

    return replace(update, loss=loss)


def _skip(state: TrainState, network: str, training: schema.Training) -> None:
    state.skipped_steps += 1
    if state.skipped_steps > training.max_skipped_steps:
        raise NonFiniteError.at(network, state.samples_seen, state.skipped_steps, training.max_skipped_steps)


def to_device(state: TrainState, device: torch.device) -> None:
    """Moves the networks and their averages."""
    for trainee in state.trainees.values():
        trainee.network.to(device)
        if trainee.ema is not None:
            trainee.ema.to(device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    return Batch(batch.x.to(device, non_blocking=True), labels)
