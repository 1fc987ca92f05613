"""Distilling a teacher into a one-step generator on the two-dimensional beds, as a run does it."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from beds import BEDS, BatchRandom, data, mmd2, sliced_w1
from torch import Tensor, nn

from nnce_dist.config.schema import OneStep, Optimiser
from nnce_dist.samplers.heun import heun
from nnce_dist.samplers.one_step import one_step
from nnce_dist.samplers.schedules import karras_sigmas, with_zero
from nnce_dist.tasks.one_step import OneStepTask
from nnce_dist.tasks.task import Batch
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.state import TrainState
from nnce_dist.training.step import apply_update

BATCH = 256
EVALUATED = 10_000  # with fewer samples the distances' floor hides what is measured
ITERATIONS = 1500
WEAK = 250  # iterations of a teacher that has not yet found the ring's modes

# Two coordinates are far from the published images: their mean residual w comes near 0 by chance, and the adversarial
# term, which is weighted by the number of pixels, must be raised by about as much as that number falls.
SETTINGS = OneStep(
    generator_freeze_samples=100 * BATCH,
    critic_from_samples=400 * BATCH,
    adversarial_scale=60.0,
    weight_floor=0.05,
    divide_adversarial_by_weight=False,
    ema_half_life=35_000,
    fake_score=Optimiser(lr=1e-3, beta1=0.0, clip_value=1.0),
    generator=Optimiser(lr=3e-4, beta1=0.0),
)


def distil(
    draw: Callable[[int, torch.Generator], Tensor], teacher: nn.Module, iterations: int, seed: int, **changes
) -> TrainState:
    """The state after so many iterations on fresh data `draw(n, generator)`; both networks start as the teacher."""
    copies = [copy.deepcopy(teacher).requires_grad_(True) for _ in range(2)]
    task = OneStepTask(teacher, *copies, replace(SETTINGS, **changes), num_classes=0)
    state, runtime = TrainState.of(task), LocalRuntime("cpu")
    generator = torch.Generator().manual_seed(seed)
    random = BatchRandom(BATCH, generator)
    for _ in range(iterations):
        batch = Batch(draw(BATCH, generator), None)
        for update in task.updates(batch, random, state.samples_seen, lambda mean: mean):
            assert apply_update(update, state.trainees[update.network], runtime, BATCH, 0, lambda *_: None)
        state.samples_seen += BATCH
        for trainee in state.trainees.values():
            trainee.update_ema(BATCH, state.samples_seen)
    return state


def distil_on(bed: str, teacher: nn.Module, iterations: int = ITERATIONS, seed: int = 0, **changes) -> nn.Module:
    """The averaged generator distilled on a bed."""
    return distil(BEDS[bed], teacher, iterations, seed, **changes).trainees["generator"].best


@torch.no_grad()
def one_step_samples(generator: nn.Module, seed: int = 11) -> Tensor:
    """Samples (EVALUATED, 2) of one evaluation each."""
    return one_step(generator, (2,), SETTINGS.sigma_init, BatchRandom.seeded(EVALUATED, seed))


def teacher_samples(teacher: nn.Module, num_steps: int = 50, seed: int = 11) -> Tensor:
    """Samples (EVALUATED, 2) of Heun's method."""
    sigmas = with_zero(karras_sigmas(num_steps))
    return heun(teacher, sigmas[0].item() * BatchRandom.seeded(EVALUATED, seed).normal(2), sigmas)


def distances(bed: str, x: Tensor) -> tuple[float, float]:
    """Sliced W1 and MMD^2 between samples (EVALUATED, 2) and the bed's data."""
    reference = data(bed, EVALUATED, seed=12)
    return sliced_w1(x, reference), mmd2(x, reference)
