"""Every way to draw images that a report compares: functions (random, one-hot labels) -> images, on equal noise."""

from collections.abc import Callable

from torch import Tensor

from ..config.schema import Config
from ..models.preconditioning import EDMPrecond
from ..samplers import heun, schedules
from ..samplers import one_step as one_step_sampler
from ..samplers.ten_step import TenStepSampler
from ..training.seeding import SampleRandom
from . import build

Draw = Callable[[SampleRandom, Tensor | None], Tensor]


def _shape(config: Config) -> tuple[int, int, int]:
    return 3, config.data.image_size, config.data.image_size


def ten_step(sampler: TenStepSampler, config: Config) -> Draw:
    """A few-step sampler, tuned or not."""
    return lambda random, labels: sampler.roll_out(_shape(config), random, labels)[-1]


def one_step(generator: EDMPrecond, config: Config) -> Draw:
    """A one-step generator."""
    sigma = config.one_step.sigma_init
    return lambda random, labels: one_step_sampler.one_step(
        lambda x, s: generator(x, s, labels), _shape(config), sigma, random
    )


def _deterministic(solver: Callable, num_steps: Callable[[Config], int]) -> Callable[[EDMPrecond, Config], Draw]:
    def make(teacher: EDMPrecond, config: Config) -> Draw:
        t = config.ten_step
        sigmas = schedules.with_zero(schedules.karras_sigmas(num_steps(config), t.sigma_min, t.sigma_max))

        def draw(random: SampleRandom, labels: Tensor | None) -> Tensor:
            x = float(sigmas[0]) * random.normal(*_shape(config))
            return solver(lambda x, s: teacher(x, s, labels), x, sigmas)

        return draw

    return make


def _untuned(teacher: EDMPrecond, config: Config) -> Draw:
    return ten_step(build.ten_step_sampler(config, teacher).eval(), config)


UNTRAINED = {  # name -> (teacher, configuration) -> draw
    "teacher": _deterministic(heun.heun, lambda c: c.teacher.steps),
    "untuned": _untuned,
    "euler": _deterministic(heun.euler, lambda c: c.ten_step.num_steps),
    "heun": _deterministic(heun.heun, lambda c: max(c.ten_step.num_steps // 2, 2)),
}
