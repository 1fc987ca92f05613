"""python -m pytest tests/unit/test_magnitude.py

M over training: the values of every schedule, and that each task's steps have them.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from nnce_dist.config.schema import MagnitudeSchedule, Objective, OneStep, TenStep, Training
from nnce_dist.models.mlp import HarmonicMLP, ValueMLP
from nnce_dist.models.preconditioning import EDMPrecond
from nnce_dist.ratio.magnitude import cosine_ramp, geometric_ramp, piecewise
from nnce_dist.samplers.ten_step import TenStepSampler
from nnce_dist.tasks import dxmi
from nnce_dist.tasks.objective import NoiseMagnitude, regularisation_weight
from nnce_dist.tasks.one_step import OneStepTask
from nnce_dist.tasks.task import Batch
from nnce_dist.tasks.ten_step import TenStepTask
from nnce_dist.training.seeding import SampleRandom

TRAINING = Training(samples=1000, batch=4)
RAMP = MagnitudeSchedule("geometric", start=100.0, until=0.5)  # down to 1: 100, 10 at a quarter, 1 from the half on


def test_ramps_are_even_in_log_m_and_reach_their_ends_exactly():
    for ramp in (geometric_ramp, cosine_ramp):
        assert ramp(3.0, 700.0, 0.0) == 3.0 and ramp(3.0, 700.0, 1.0) == 700.0
        assert ramp(1.0, 1e4, 0.5) == pytest.approx(100.0)
    assert geometric_ramp(1.0, 1e4, 0.25) == pytest.approx(10.0)
    assert math.log(cosine_ramp(1.0, math.e, 1 / 3)) == pytest.approx(0.25)


def test_pieces_begin_at_their_fractions():
    at = [piecewise([0.25, 0.5], [100.0, 10.0, math.inf], u) for u in (0, 0.24, 0.25, 0.49, 0.5, 1)]
    assert at == [100, 100, 10, 10, math.inf, math.inf]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (MagnitudeSchedule(), [7, 7, 7, 7]),
        (MagnitudeSchedule("geometric", start=7e4), [7e4, 7e3, 700, 7]),
        (MagnitudeSchedule("geometric", start=7e4, until=0.5), [7e4, 700, 7, 7]),
        (MagnitudeSchedule("cosine", start=700), [700, 700 ** (0.5 + 2**-1.5) * 7 ** (0.5 - 2**-1.5), 70, 7]),
        (MagnitudeSchedule("piecewise", fractions=[0.5], magnitudes=[math.inf]), [math.inf, math.inf, 7, 7]),
    ],
    ids=lambda value: value.kind if isinstance(value, MagnitudeSchedule) else "",
)
def test_a_schedule_is_a_function_of_the_samples_seen(schedule, values):
    magnitude = NoiseMagnitude(7.0, schedule, 800)
    assert [magnitude.at(seen) for seen in (0, 200, 400, 800)] == pytest.approx(values)
    assert min(magnitude.milestones) <= min(values) and max(magnitude.milestones) >= max(values)


def test_held_regularisation_follows_m():
    objective = Objective(ratio_regularisation=0.6, hold_regularisation=True)
    assert [regularisation_weight(objective, m) for m in (1, 2, math.inf)] == pytest.approx([0.3, 0.4, 0.6])
    assert regularisation_weight(replace(objective, hold_regularisation=False), 1) == 0.6


def denoiser() -> EDMPrecond:
    torch.manual_seed(0)
    return EDMPrecond(HarmonicMLP(width=8))


def ten_step(schedule: MagnitudeSchedule, m: float) -> TenStepTask:
    settings = TenStep(num_steps=3, skip=1, sampler_batches=1, value_steps="joint", training=TRAINING)
    sampler = TenStepSampler(denoiser(), dxmi.few_step_schedule(settings))
    return TenStepTask(sampler, ValueMLP(width=8), settings, Objective(noise_magnitude=m, schedule=schedule), 0)


def one_step(schedule: MagnitudeSchedule, m: float) -> OneStepTask:
    settings = OneStep(critic_noise_magnitude=m, training=TRAINING)
    return OneStepTask(*(copy.deepcopy(denoiser()) for _ in range(3)), settings, 0, schedule=schedule)


def losses(task, samples_seen: int) -> list[torch.Tensor]:
    """The losses of one iteration at a position, none applied; M as observed where it is."""
    batch, random = Batch(SampleRandom.at(2, range(4)).normal(2), None), SampleRandom.at(1, range(4))
    updates = task.updates(batch, random, samples_seen, lambda mean: mean)
    return [update.loss(slice(0, 4)) for update in updates]


@pytest.mark.parametrize("make", [ten_step, one_step])
def test_a_scheduled_step_is_the_step_at_its_m(make):
    for seen, m in ((0, 100.0), (250, 10.0), (500, 1.0), (1000, 1.0)):
        scheduled, constant = losses(make(RAMP, 1.0), seen), losses(make(MagnitudeSchedule(), m), seen)
        for (loss, _), (expected, _) in zip(scheduled, constant, strict=True):
            torch.testing.assert_close(loss, expected)
        observed = [o["noise_magnitude"] for _, o in scheduled if "noise_magnitude" in o]
        assert len(observed) == 1 and observed[0].tolist() == pytest.approx([m] * 4)
    first, last = losses(make(RAMP, 1.0), 0)[0][0], losses(make(RAMP, 1.0), 1000)[0][0]
    assert not torch.allclose(first, last)


def test_cross_entropy_keeps_its_m_whatever_the_schedule():
    settings = OneStep(critic="bce", training=TRAINING)
    task = OneStepTask(*(denoiser() for _ in range(3)), settings, 0, schedule=RAMP)
    assert [task.magnitude.at(seen) for seen in (0, 1000)] == [1, 1]
