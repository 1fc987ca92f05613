"""A pack: trials that share one process, their data and what else they have in common; each in its own folder.

They are stacked and step together where that is possible, and take turns where it is not.
"""

import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace

import torch
from torch import nn

from ..config.load import from_dict
from ..data import counters
from ..metrics.packed import PackedRecorder
from ..samplers.divergence import DivergedError
from ..tasks.task import StackableTask
from ..training.checkpoint import FencedError
from ..training.errors import describe
from ..training.loop import steps
from ..training.packed import PackedStream, PackedTask, packed_state
from ..training.runtime import stop_if_asked
from ..training.state import TrainState
from ..training.step import NonFiniteError
from ..training.stopping import Stopped
from ..training.turns import SharedStream, take_turns
from .failed_state import release_failed
from .folder import read_result, release, write_error
from .job import Job
from .learning import Learning
from .learnings import LEARNINGS, diverged_result, result_of
from .trials import swept_settings

Trained = tuple[Mapping[str, nn.Module], int] | Exception  # networks and samples seen, or why there are none


def run_pack(pack: Job, trials: list[dict]) -> list[dict]:
    """The results of all trials, given as payloads like those of `jobs.run_job`; done ones are not done again.

    The result of one that failed is its name, stage and `error`; it disturbs no other.
    """
    shared: dict = {}
    where = (pack.runtime, pack.guard.epoch, shared)
    jobs = [Job(from_dict(one["config"]), pack.root, one["stage"], one["name"], *where) for one in trials]
    done = {job.name: result for job in jobs if (result := read_result(job.folder))}
    if len(done) < len(jobs):
        stop_if_asked(pack.runtime, "its start")
        done |= _learn(pack, jobs, done)
        release(pack.config, pack.folder, pack.stage)
    return [done[job.name] for job in jobs]


def _learn(pack: Job, jobs: list[Job], done: Mapping[str, dict]) -> dict[str, dict]:
    """The results of the trials that are not done, by name."""
    start = time.perf_counter()
    learnings = [LEARNINGS[job.stage](job) for job in jobs]
    if all(map(can_stack, learnings)):
        trained = stacked(pack, jobs, learnings)  # with those that are done, whose place in the stack others rely on
    else:
        left = [(job, learning) for job, learning in zip(jobs, learnings, strict=True) if job.name not in done]
        trained = in_turns(*zip(*left, strict=True))
    seconds = (time.perf_counter() - start) / (len(jobs) - len(done))
    return {
        job.name: _finished(job, learning, trained[job.name], seconds)
        for job, learning in zip(jobs, learnings, strict=True)
        if job.name not in done
    }


def can_stack(learning: Learning) -> bool:
    """Whether trials of this kind can be stacked: a pure loss, no step left out alone, no checkpoint of its own."""
    training = learning.settings.training
    return isinstance(learning.task, StackableTask) and not training.max_skipped_steps and not training.keep_best


def stacked(pack: Job, jobs: list[Job], learnings: list[Learning]) -> dict[str, Trained]:
    """Trains all trials at once; the checkpoints are the pack's."""
    streams = {job.seed: learning.stream for job, learning in zip(jobs, learnings, strict=True)}
    places = {seed: place for place, seed in enumerate(streams)}
    task = PackedTask([learning.task for learning in learnings], [places[job.seed] for job in jobs])
    training, stream, state = jobs[0].training(learnings[0]), PackedStream(streams), packed_state(task)
    recorder = PackedRecorder(
        [job.member(learning) for job, learning in zip(jobs, learnings, strict=True)],
        *(training.batch, pack.runtime.all_reduce, counters.since_now(), lambda: task.members.training),
    )
    saver = pack.saver(stream, recorder.note)
    with closing(recorder):
        step_all(state, (stream, training, pack.seed, pack.runtime, recorder, saver, recorder.note))
    task.unpack(state.best[task.network])
    return {job.name: _of_member(state, number) for number, job in enumerate(jobs)}


def step_all(state: TrainState, where: tuple) -> None:
    """Steps a packed state until its end, or until every trial has left."""
    members = state.task.members
    try:
        with closing(steps(state, *where)) as going:
            for _ in going:
                if not members.training:
                    return
    except NonFiniteError:  # in every trial that was still training
        members.leave(torch.ones_like(members.failed), state.samples_seen, failed=True)


def _of_member(state: TrainState, number: int) -> Trained:
    task, members = state.task, state.task.members
    samples = int(members.left_at[number]) if number not in members.training else state.samples_seen
    if members.failed[number]:
        return NonFiniteError.at(task.network, samples)
    return task.tasks[number].networks, samples


def in_turns(jobs: list[Job], learnings: list[Learning]) -> dict[str, Trained]:
    """Trains every trial as it would be alone, a step of each in turn, on streams that they share."""
    shared = {id(learning.stream): SharedStream(learning.stream) for learning in learnings}
    states = {job.name: TrainState.of(learning.task) for job, learning in zip(jobs, learnings, strict=True)}
    with ExitStack() as stack:
        trainings = {}
        for job, learning in zip(jobs, learnings, strict=True):
            learning = replace(learning, stream=shared[id(learning.stream)])
            trainings[job.name] = steps(states[job.name], *stack.enter_context(job.prepared(learning)))
        errors = take_turns(trainings)
    return {name: errors.get(name) or (state.best, state.samples_seen) for name, state in states.items()}


def _finished(job: Job, learning: Learning, trained: Trained, seconds: float) -> dict:
    """The result of one trial, kept in its folder."""
    start = time.perf_counter()
    try:
        if isinstance(trained, DivergedError):
            result = diverged_result(learning, trained)
        elif isinstance(trained, Exception):
            raise trained
        else:
            result = result_of(job, learning, *trained)
        return job.complete(result, seconds + time.perf_counter() - start)
    except (Stopped, FencedError):
        raise
    except Exception as error:  # whatever it is, it ends this trial alone
        write_error(job.folder, traceback.format_exc())
        job.tell(event=f"failed: {describe(error)}", settings=swept_settings(job.config, job.stage))
        release_failed(job.config, job.folder, job.stage)
        return {"name": job.name, "stage": job.stage, "error": describe(error)}
