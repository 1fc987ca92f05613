"""Tuning a few-step sampler on the two-dimensional beds, as a run does it but without data streams or checkpoints."""

import copy
from dataclasses import replace

import torch
from beds import BEDS, BatchRandom, data, mmd2, sliced_w1
from torch import Tensor

from nnce_dist.config.schema import Objective, Optimiser, TenStep
from nnce_dist.models.mlp import ValueMLP
from nnce_dist.samplers.ten_step import TenStepSampler
from nnce_dist.tasks.dxmi import few_step_schedule
from nnce_dist.tasks.task import Batch
from nnce_dist.tasks.ten_step import TenStepTask
from nnce_dist.training.runtime import LocalRuntime
from nnce_dist.training.state import TrainState
from nnce_dist.training.step import apply_update

BATCH = 128
RECIPES = {"ring": (3e-5, 500), "checkerboard": (1e-4, 300)}  # learning rate of the denoiser, iterations
EVALUATED = 10_000  # with fewer samples the distances' floor hides what is measured


def settings(lr: float, **changes) -> TenStep:
    """Settings that work on both beds; `lr` is the denoiser's."""
    base = TenStep(
        skip=0,
        value_steps="joint",
        sampler_batches=10,
        sampler_steps="joint",
        sampler=Optimiser(lr=lr, clip_norm=0.1, decay_fraction=0.3),
        value=Optimiser(lr=1e-3, decay_fraction=0.3),
        log_sigma_lr_scale=10,
    )
    return replace(base, **changes)


def untuned(teacher: torch.nn.Module, chosen: TenStep) -> TenStepSampler:
    """The schedule's ancestral sampler around a copy of the teacher."""
    return TenStepSampler(copy.deepcopy(teacher).requires_grad_(True), few_step_schedule(chosen))


def tune(
    bed: str, teacher: torch.nn.Module, chosen: TenStep, objective: Objective, iterations: int, seed: int
) -> TenStepSampler:
    """The sampler after so many iterations on fresh data."""
    sampler = untuned(teacher, chosen)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = TenStepTask(sampler, ValueMLP(), chosen, objective, num_classes=0)
    state, runtime = TrainState.of(task), LocalRuntime("cpu")
    generator = torch.Generator().manual_seed(seed)
    random = BatchRandom(BATCH, generator)
    for step in range(iterations):
        for trainee in state.trainees.values():
            trainee.set_learning_rate(step, iterations)
        batch = Batch(BEDS[bed](BATCH, generator), None)
        for update in task.updates(batch, random, step * BATCH, lambda mean: mean):
            if not apply_update(update, state.trainees[update.network], runtime, BATCH, 0, lambda *_: None):
                raise FloatingPointError(f"{bed}: gradient of {update.network} not finite at iteration {step}")
    return sampler


def samples(sampler: TenStepSampler, seed: int = 11) -> Tensor:
    """Samples (EVALUATED, 2)."""
    return sampler.roll_out((2,), BatchRandom.seeded(EVALUATED, seed))[-1]


def distances(bed: str, x: Tensor) -> tuple[float, float]:
    """Sliced W1 and MMD^2 between samples (EVALUATED, 2) and the bed's data."""
    reference = data(bed, EVALUATED, seed=12)
    return sliced_w1(x, reference), mmd2(x, reference)
