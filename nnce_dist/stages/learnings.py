"""What each stage learns: networks and task from the configuration, and what is kept and measured in the end."""

import copy
import math

from ..config.sweep_checks import swept_stage
from ..samplers.divergence import DivergedError
from ..tasks.one_step import OneStepTask
from ..tasks.teacher import TeacherTask
from ..tasks.ten_step import TenStepTask
from . import build, density_ratio, draws
from .job import Job, diverged
from .learning import Learning, Networks
from .trials import constants as magnitude


def teacher(job: Job) -> Learning:
    """The denoiser, of which the average is kept."""
    config = job.config
    build.seed_networks(config, 1)
    task = TeacherTask(build.denoiser(config), config.teacher, config.data.num_classes, build.augment(config))

    def draw(networks: Networks) -> draws.Draw:
        return draws.UNTRAINED["teacher"](networks["denoiser"].eval(), config)

    def finish(networks: Networks, samples: int) -> dict:
        job.save_weights(networks["denoiser"])
        return {"samples": samples}  # its figures are a job of their own, which a given teacher needs as well

    return Learning(task, config.teacher, job.data, finish, lambda networks: job.select(draw(networks)))


def ten_step(job: Job) -> Learning:
    """The few-step sampler at one noise magnitude."""
    config = job.config
    sampler, value = build.ten_step_sampler(config, job.teacher), build.value(config)
    task = TenStepTask(sampler, value, config.ten_step, config.objective, config.data.num_classes, len(job.data))

    def draw(networks: Networks) -> draws.Draw:
        return draws.ten_step(networks["sampler"].eval(), config)

    def select(networks: Networks) -> float:
        return job.select(draw(networks))

    def finish(networks: Networks, samples: int) -> dict:
        job.save_weights(networks["sampler"])
        job.save_weights(networks["value"], "value")
        known = {"samples": samples, "noise_magnitude": task.magnitude.at(samples)}  # at the end
        return {**known, "selection": select(networks), **job.measure(draw(networks))}

    return Learning(task, config.ten_step, job.data, finish, select, magnitude(config))


def one_step(job: Job) -> Learning:
    """The one-step generator and the fake score that it is distilled with."""
    config, settings = job.config, job.config.one_step
    fake_score, generator = (copy.deepcopy(job.teacher).requires_grad_(True) for _ in range(2))
    task = OneStepTask(
        job.teacher,
        fake_score,
        generator,
        settings,
        config.data.num_classes,
        config.teacher.p_mean,
        config.teacher.p_std,
        build.augment(config),
        config.objective.schedule,
    )

    def draw(networks: Networks) -> draws.Draw:
        return draws.one_step(networks["generator"].eval(), config)

    def finish(networks: Networks, samples: int) -> dict:
        job.save_weights(networks["generator"])
        return {"samples": samples, **job.measure(draw(networks))}

    constants = {"noise_magnitude": settings.critic_noise_magnitude}
    return Learning(task, settings, job.data, finish, lambda networks: job.select(draw(networks)), constants)


def result_of(job: Job, learning: Learning, networks: Networks, samples: int) -> dict:
    """The job's result, for a trial of a space with its selection figure, which no other job need spend time on."""
    result = learning.finish(networks, samples)
    if "selection" not in result and job.config.sweep.space and job.stage == swept_stage(job.config):
        result["selection"] = learning.select(networks)
    return result


def diverged_result(learning: Learning, error: DivergedError) -> dict:
    """The result of a training that was stopped because its samples are no pictures any more."""
    return {"samples": error.samples_seen, **learning.constants, "selection": math.inf, **diverged(error)}


LEARNINGS = {"teacher": teacher, "ten_step": ten_step, "one_step": one_step, "density_ratio": density_ratio.learning}
