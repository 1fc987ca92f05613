"""What runs in a trial's process: one job, alone in its folder, from plain data in to plain data out.

A job that was done before returns its result at once; one that was interrupted goes on from its newest checkpoint.
"""

import time
from pathlib import Path

import torch

from ..config.load import from_dict
from ..samplers.divergence import DivergedError
from ..training.loop import train
from ..training.runtime import Runtime, stop_if_asked
from . import draws
from .folder import read_result
from .goal import Goal
from .job import Job
from .learnings import LEARNINGS
from .packs import run_pack


def measure_sampler(job: Job) -> dict:
    """Measures a sampler that needs no training: the data themselves, the teacher, or a way to sample from it."""
    if job.name == "data":
        return job.measure_data()
    teacher = job.teacher
    return job.measure(draws.UNTRAINED[job.name](teacher, job.config))


class JobsFailedError(RuntimeError):
    """One or more jobs failed; the others are done."""


def learn(job: Job, goal: Goal) -> dict:
    """Trains what the job's stage learns as far as it is to go, and gives what it has come to there."""
    learning = LEARNINGS[job.stage](job)
    try:
        with job.prepared(learning) as where:
            state = train(learning.task, *where, until=goal.until)
    except DivergedError as error:
        return goal.diverged(learning, error)
    return goal.reached(job, learning, state.best, state.samples_seen)


def run_job(payload: dict, runtime: Runtime) -> dict:
    """Runs one job: {"stage": its kind, "name": the trial, "config": plain configuration, "root": run folder}.

    With the "epoch" of a lease it commits nothing once the run has another owner. Returns its result: name, stage,
    seconds, samples trained, and figures by name with one value per draw. With "trials" it is a pack of jobs, whose
    results are those of all (see `packs.py`). With "until" and "metric" it is trained until so many samples were seen,
    and measured there (see `goal.py`); it is done only at the end of its training.
    """
    config = from_dict(payload["config"])
    torch.set_num_threads(config.workers.threads)
    root, epoch = Path(payload["root"]), payload.get("epoch", 0)
    job = Job(config, root, payload["stage"], payload["name"], runtime, epoch)
    if "trials" in payload:
        return run_pack(job, payload["trials"])
    if (done := read_result(job.folder)) is not None:
        return done
    stop_if_asked(runtime, "its start")
    start, goal = time.perf_counter(), Goal.of(payload)
    result = measure_sampler(job) if job.stage == "samplers" else learn(job, goal)
    return goal.conclude(job, result, time.perf_counter() - start)
