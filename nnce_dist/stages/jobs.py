"""What runs in a trial's process: one job, alone in its folder, from plain data in to plain data out.

A job that was done before returns its result at once; one that was interrupted goes on from its newest checkpoint.
"""

import math
import time
from pathlib import Path

import torch

from ..config.load import from_dict
from ..metrics.jsonl import training_records
from ..samplers.divergence import DivergedError
from ..training.loop import train
from ..training.runtime import Runtime, stop_if_asked
from . import draws
from .folder import read_result
from .job import Job, outcome_of
from .learnings import LEARNINGS, diverged_result, result_of
from .packs import run_pack


def measure_sampler(job: Job) -> dict:
    """Measures a sampler that needs no training: the data themselves, the teacher, or a way to sample from it."""
    if job.name == "data":
        return job.measure_data()
    teacher = job.teacher
    return job.measure(draws.UNTRAINED[job.name](teacher, job.config))


SELECTION = "selection"  # the metric that a stage is chosen by unless the sweep names another


class JobsFailedError(RuntimeError):
    """One or more jobs failed; the others are done."""


def learn(job: Job) -> dict:
    """Trains what the job's stage learns, and gives its result."""
    learning = LEARNINGS[job.stage](job)
    try:
        with job.prepared(learning) as where:
            state = train(learning.task, *where)
    except DivergedError as error:
        return diverged_result(learning, error)
    return result_of(job, learning, state.best, state.samples_seen)


def learn_segment(job: Job, until: int, metric: str) -> dict:
    """Trains until so many samples were seen: the value of the metric there and, at the end of training, the result."""
    learning = LEARNINGS[job.stage](job)
    finished = until == learning.settings.training.samples
    try:
        with job.prepared(learning) as where:
            state = train(learning.task, *where, until=until)
    except DivergedError as error:
        result = diverged_result(learning, error)
        return (result if finished else {"reason": result["reason"]}) | {"value": math.inf}
    result = result_of(job, learning, state.best, state.samples_seen) if finished else {"samples": until}
    if metric == SELECTION:
        return result | {"value": result["selection"] if finished else learning.select(state.best)}
    return result | {"value": math.inf if "note" in result else recorded(job.folder, metric)}


def recorded(folder: Path, metric: str) -> float:
    """The last value of a figure of a job's log. Raises ValueError naming those that there are."""
    records = training_records(folder)
    values = [record[metric] for record in records if metric in record]
    if not values:
        names = ", ".join(sorted(key for key in records[-1] if "/" in key)) if records else "none"
        raise ValueError(f"sweep.metric={metric} is not recorded; use {SELECTION}, or one of: {names}")
    return values[-1]


def run_job(payload: dict, runtime: Runtime) -> dict:
    """Runs one job: {"stage": its kind, "name": the trial, "config": plain configuration, "root": run folder}.

    With the "epoch" of a lease it commits nothing once the run has another owner. Returns its result: name, stage,
    seconds, samples trained, and figures by name with one value per draw. With "trials" it is a pack of jobs, whose
    results are those of all (see `packs.py`). With "until" and "metric" it is trained until so many samples were seen,
    and measured there; it is done only at the end of its training.
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
    start = time.perf_counter()
    if "until" in payload:
        result = learn_segment(job, payload["until"], payload["metric"])
        if "selection" not in result:
            new = {f"evaluation/{SELECTION}": result["value"]} if payload["metric"] == SELECTION else {}
            job.tell(event=outcome_of(result, "judged"), **new)  # any other figure is in the log already
            return result  # there is more to come
    else:
        result = measure_sampler(job) if job.stage == "samplers" else learn(job)
    return job.complete(result, time.perf_counter() - start)
