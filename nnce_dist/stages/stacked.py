"""Trials of a pack that are stacked and stepped together (`training/packed.py`), with the pack's own checkpoints.

Where a sweep decides before their end they begin with their own checkpoints, and leave such when they have come there:
between two decisions each trial is an ordinary run, which can go on alone or in another pack.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from ..config.schema import Training
from ..data import counters
from ..metrics.packed import PackedRecorder
from ..tasks.task import StackableTask
from ..training.loop import Stream, steps, to_device
from ..training.packed import PackedStream, PackedTask, hand_back, packed_state, same_place, take_up
from ..training.resume import resume
from ..training.state import TrainState
from ..training.step import NonFiniteError
from .goal import Goal
from .job import Job
from .learning import Learning

Trained = TrainState | Exception  # a trial's own state, or why there is none
Jobs = Sequence[tuple[Job, Learning]]  # of a pack's trials, with what they learn


def can_stack(learning: Learning) -> bool:
    """Whether trials of this kind can be stacked: a pure loss, no step left out or taken back alone, no best state."""
    training = learning.settings.training
    alone = training.max_skipped_steps or training.rollback or training.keep_best
    return isinstance(learning.task, StackableTask) and not alone


def stacked(pack: Job, jobs: Jobs, goal: Goal) -> dict[str, Trained] | None:
    """Trains all trials at once; the checkpoints are the pack's. None, with nothing done, where they cannot begin so.

    That is when they are at different places, and the pack has no checkpoint with all of them.
    """
    alone, stream = [TrainState.of(learning.task) for _, learning in jobs], _stream(jobs)
    if goal.until is not None and not _goes_on(pack, jobs, alone, stream) and not same_place(alone):
        return None
    state = _together(pack, jobs)
    if same_place(alone):
        take_up(state, alone)
    _train(pack, jobs, state, stream, goal)
    hand_back(state, alone)
    return {job.name: _of_member(state, number, alone[number]) for number, (job, _) in enumerate(jobs)}


def _together(pack: Job, jobs: Jobs) -> TrainState:
    """A state of all trials' networks and magnitudes as they are now."""
    places = {seed: place for place, seed in enumerate(dict.fromkeys(job.seed for job, _ in jobs))}
    task = PackedTask([learning.task for _, learning in jobs], [places[job.seed] for job, _ in jobs])
    state = packed_state(task)
    to_device(state, pack.runtime.device)
    return state


def _stream(jobs: Jobs) -> Stream:
    return PackedStream({job.seed: learning.stream for job, learning in jobs})


def _train(pack: Job, jobs: Jobs, state: TrainState, stream: Stream, goal: Goal) -> None:
    training, members = _bookkeeping(jobs, goal), state.task.members
    recorder = PackedRecorder(
        [job.member(learning) for job, learning in jobs],
        *(training.batch, pack.runtime.all_reduce, counters.since_now(), lambda: members.training),
    )
    saver = pack.saver(stream, recorder.note)
    with closing(recorder):
        where = (stream, training, pack.seed, pack.runtime, recorder, saver, recorder.note)
        step_all(state, where, goal.until)


def _bookkeeping(jobs: Jobs, goal: Goal) -> Training:
    """That of any trial; of checkpoints that are there for a segment alone the newest one is enough."""
    training = jobs[0][0].training(jobs[0][1])
    return training if goal.until is None else replace(training, keep_last=1, keep_bytes=0)


def step_all(state: TrainState, where: tuple, until: int | None = None) -> None:
    """Steps a packed state until its end, or until every trial has left."""
    members = state.task.members
    try:
        with closing(steps(state, *where, until=until)) as going:
            for _ in going:
                if not members.training:
                    return
    except NonFiniteError:  # in every trial that was still training
        members.leave(torch.ones_like(members.failed), state.samples_seen, failed=True)


def _of_member(state: TrainState, number: int, own: TrainState) -> Trained:
    if state.task.members.failed[number]:
        return NonFiniteError.at(state.task.network, own.samples_seen)
    return own


# ---- between two decisions of a sweep --------------------------------------------------------------------------------


def _goes_on(pack: Job, jobs: Jobs, alone: Sequence[TrainState], stream: Stream) -> bool:
    """Whether the pack has a checkpoint; if not, every trial is brought to its own newest one, as it would be alone."""
    state, total = _together(pack, jobs), jobs[0][1].settings.training.samples
    found, story = resume(pack.saver(stream, pack.tell_event), state, total, pack.runtime)
    for (job, learning), own in zip(jobs, alone, strict=True):
        saver = job.saver(learning.stream, job.tell_event)
        own_story = "" if found else resume(saver, own, total, job.runtime)[1]
        job.tell_from(state.samples_seen if found else own.samples_seen, story, own_story)
    return found


def keep_own(jobs: Jobs, trained: Mapping[str, Trained]) -> None:
    """Commits every trial's own checkpoint, in the mirror too, as it would alone; not of those that have failed."""
    with ExitStack() as stack:
        savers = []
        for job, learning in jobs:
            own = trained[job.name]
            if job.runtime.rank == 0 and isinstance(own, TrainState):
                saver, training = (
                    stack.enter_context(job.saver(learning.stream, job.tell_event)),
                    job.training(learning),
                )
                saver.prepare(own, training)
                saver.save(own, training)
                saver.wait()
                savers.append(saver)
        for saver in savers:
            saver.wait_for_copy()
    jobs[0][0].runtime.barrier()
