"""A pack: trials that share one process, their data and what else they have in common; each in its own folder.

They are stacked and step together where that is possible, and take turns where it is not.
"""

import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from ..config.load import from_dict
from ..samplers.divergence import DivergedError
from ..training.checkpoint import FencedError
from ..training.errors import describe
from ..training.loop import steps
from ..training.runtime import stop_if_asked
from ..training.state import TrainState
from ..training.stopping import Stopped
from ..training.turns import SharedStream, take_turns
from .failed_state import release_failed
from .folder import read_result, release, write_error
from .goal import Goal
from .job import Job
from .learning import Learning
from .learnings import LEARNINGS
from .stacked import Jobs, Trained, can_stack, keep_own, stacked
from .trials import swept_settings


def run_pack(pack: Job, trials: list[dict]) -> list[dict]:
    """The results of all trials, given as payloads like those of `jobs.run_job`; done ones are not done again.

    The result of one that failed is its name, stage and `error`; it disturbs no other. All have the same goal.
    """
    shared, goal = {}, Goal.of(trials[0])
    where = (pack.runtime, pack.guard.epoch, shared)
    jobs = [Job(from_dict(one["config"]), pack.root, one["stage"], one["name"], *where) for one in trials]
    done = {job.name: result for job in jobs if (result := read_result(job.folder))}
    if len(done) < len(jobs):
        stop_if_asked(pack.runtime, "its start")
        done |= _learn(pack, jobs, done, goal)
        release(pack.config, pack.folder, pack.stage)
    if goal.until is not None:
        pack.forget()  # from here on each trial has all that it needs
    return [done[job.name] for job in jobs]


def _learn(pack: Job, jobs: list[Job], done: Mapping[str, dict], goal: Goal) -> dict[str, dict]:
    """The results of the trials that are not done, by name."""
    start, all_jobs = time.perf_counter(), [(job, LEARNINGS[job.stage](job)) for job in jobs]
    left, trained = [(job, learning) for job, learning in all_jobs if job.name not in done], None
    if all(can_stack(learning) for _, learning in all_jobs):
        trained = stacked(pack, all_jobs, goal)  # with those that are done, whose place in the stack others rely on
    if trained is None:
        trained = in_turns(left, goal)
    elif goal.until is not None:
        keep_own(left, trained)
    seconds = (time.perf_counter() - start) / len(left)
    return {job.name: _finished(job, learning, trained[job.name], goal, seconds) for job, learning in left}


def in_turns(jobs: Jobs, goal: Goal) -> dict[str, Trained]:
    """Trains every trial as it would be alone, a step of each in turn, on streams that they share."""
    shared = {id(learning.stream): SharedStream(learning.stream) for _, learning in jobs}
    states = {job.name: TrainState.of(learning.task) for job, learning in jobs}
    with ExitStack() as stack:
        trainings = {}
        for job, learning in jobs:
            learning = replace(learning, stream=shared[id(learning.stream)])
            where = stack.enter_context(job.prepared(learning))
            trainings[job.name] = steps(states[job.name], *where, until=goal.until)
        errors = take_turns(trainings)
    return states | errors


def _finished(job: Job, learning: Learning, trained: Trained, goal: Goal, seconds: float) -> dict:
    """The result of one trial, kept in its folder."""
    start = time.perf_counter()
    try:
        if isinstance(trained, DivergedError):
            result = goal.diverged(learning, trained)
        elif isinstance(trained, Exception):
            raise trained
        else:
            result = goal.reached(job, learning, trained.best, trained.samples_seen)
        return goal.conclude(job, result, seconds + time.perf_counter() - start)
    except (Stopped, FencedError):
        raise
    except Exception as error:  # whatever it is, it ends this trial alone
        write_error(job.folder, traceback.format_exc())
        job.tell(event=f"failed: {describe(error)}", settings=swept_settings(job.config, job.stage))
        release_failed(job.config, job.folder, job.stage)
        return {"name": job.name, "stage": job.stage, "error": describe(error)}
