"""What runs in a trial's process: one job, alone in its folder, from plain data in to plain data out.

A job that was done before returns its result at once; one that was interrupted goes on from its newest checkpoint.
"""

import copy
import time
from pathlib import Path

import torch

from ..config.load import from_dict
from ..tasks.one_step import OneStepTask
from ..tasks.teacher import TeacherTask
from ..tasks.ten_step import TenStepTask
from ..training.runtime import Runtime
from . import build, draws
from .folder import read_result, write_result
from .job import Job


def train_teacher(job: Job) -> dict:
    """Trains the denoiser and keeps its average."""
    config = job.config
    build.seed_networks(config, 1)
    augment = build.augment(config)
    state = job.train(
        TeacherTask(build.denoiser(config), config.teacher, config.data.num_classes, augment), config.teacher
    )
    job.save_weights(state.trainees["denoiser"].best)
    return {"samples": state.samples_seen}


def tune_ten_step(job: Job) -> dict:
    """Tunes the few-step sampler at one noise magnitude and measures it."""
    config = job.config
    sampler = build.ten_step_sampler(config, job.teacher)
    task = TenStepTask(sampler, build.value(config), config.ten_step, config.objective, config.data.num_classes)
    state = job.train(task, config.ten_step, noise_magnitude=config.objective.noise_magnitude)
    tuned = state.trainees["sampler"].best
    job.save_weights(tuned)
    job.save_weights(state.trainees["value"].best, "value")
    draw = draws.ten_step(tuned.eval(), config)
    return {
        "samples": state.samples_seen,
        "noise_magnitude": config.objective.noise_magnitude,
        "selection": job.select(draw),
        **job.measure(draw),
    }


def distil_one_step(job: Job) -> dict:
    """Distils the one-step generator and measures it."""
    config = job.config
    teacher = job.teacher
    fake_score, generator = (copy.deepcopy(teacher).requires_grad_(True) for _ in range(2))
    task = OneStepTask(
        teacher,
        fake_score,
        generator,
        config.one_step,
        config.data.num_classes,
        config.teacher.p_mean,
        config.teacher.p_std,
        build.augment(config),
    )
    state = job.train(task, config.one_step, noise_magnitude=config.one_step.critic_noise_magnitude)
    generator = state.trainees["generator"].best
    job.save_weights(generator)
    return {"samples": state.samples_seen, **job.measure(draws.one_step(generator.eval(), config))}


def measure_sampler(job: Job) -> dict:
    """Measures a sampler that needs no training: the data themselves, the teacher, or a way to sample from it."""
    if job.name == "data":
        return job.measure_data()
    teacher = job.teacher
    return job.measure(draws.UNTRAINED[job.name](teacher, job.config))


JOBS = {"teacher": train_teacher, "ten_step": tune_ten_step, "one_step": distil_one_step, "samplers": measure_sampler}


def run_job(payload: dict, runtime: Runtime) -> dict:
    """Runs one job: {"stage": a key of JOBS, "name": the trial, "config": plain configuration, "root": run folder}.

    Returns its result: name, stage, seconds, samples trained, and figures by name with one value per draw.
    """
    config = from_dict(payload["config"])
    torch.set_num_threads(config.workers.threads)
    job = Job(config, Path(payload["root"]), payload["stage"], payload["name"], runtime)
    if (done := read_result(job.folder)) is not None:
        return done
    start = time.perf_counter()
    result = JOBS[job.stage](job)
    result |= {"name": job.name, "stage": job.stage, "seconds": time.perf_counter() - start}
    if runtime.rank == 0:
        job.publish(result.get("figures", {}))
        write_result(job.folder, result)
    runtime.barrier()
    return result
