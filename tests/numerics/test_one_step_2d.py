""".venv/bin/pytest tests/numerics/test_one_step_2d.py

The one-step generator learns: distances to known two-dimensional densities, and the critic's logit is the log-ratio.
"""

import functools
import math

import pytest
import torch
from beds import teacher
from distilling import WEAK, distances, distil, distil_on, one_step_samples, teacher_samples

from nnce_dist.models.mlp import HarmonicMLP
from nnce_dist.models.preconditioning import EDMPrecond, c_skip
from nnce_dist.ratio.closed_form import Gaussian, log_ratio
from nnce_dist.samplers.divergence import DivergedError
from nnce_dist.tasks import sid

SIGMA_INIT, SIGMA_DATA = 2.5, 0.5


@functools.lru_cache
def teachers_distance() -> float:
    """Sliced W1 of the weak teacher with 50 Heun steps."""
    return distances("ring", teacher_samples(teacher("ring", WEAK)))[0]


def distance_from_weak(iterations: int = 1500, **changes) -> float:
    """Sliced W1 of the generator distilled from the ring's weak teacher."""
    generator = distil_on("ring", teacher("ring", WEAK), iterations, **changes)
    return distances("ring", one_step_samples(generator))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bed", "target", "critic", "iterations"), [("checkerboard", 0.03, "none", 1000), ("ring", 0.04, "n2ce", 1800)]
)
def test_a_good_teacher_is_distilled_into_one_step(bed, target, critic, iterations):
    assert distances(bed, one_step_samples(teacher(bed)))[0] > 0.3
    generator = distil_on(bed, teacher(bed), iterations, critic=critic)
    assert distances(bed, one_step_samples(generator))[0] < target


@pytest.mark.slow
def test_with_the_critic_the_generator_beats_a_weak_teacher():
    assert teachers_distance() > 0.05
    assert distance_from_weak() <= 0.75 * teachers_distance()


@pytest.mark.slow
def test_without_the_critic_it_stays_at_the_weak_teachers_distance():
    assert distance_from_weak(critic="none") > 0.9 * teachers_distance()


@pytest.mark.slow
def test_with_the_critics_sides_exchanged_it_diverges(monkeypatch):
    """Mutation: a generator that follows the critic the wrong way; its samples leave the data's range."""
    right_way = sid.adversarial_loss
    monkeypatch.setattr(sid, "adversarial_loss", lambda *args: -right_way(*args))
    with pytest.raises(DivergedError):
        distance_from_weak(800)


@pytest.mark.slow
@pytest.mark.parametrize("m", [1.0, 50.0, math.inf])
def test_the_critics_logit_is_the_log_ratio_at_every_noise_level(m):
    """With a frozen generator of Gaussian samples and Gaussian data, at any M: against the closed form."""
    data = Gaussian(torch.tensor([0.2, 0.0]), 0.2**2 * torch.eye(2))
    torch.manual_seed(0)
    identity = EDMPrecond(HarmonicMLP())  # D = c_skip x, so G(z) = c_skip(2.5) 2.5 z, of standard deviation .096
    for parameter in identity.model.decoder[-1].parameters():
        torch.nn.init.zeros_(parameter)
    generator = torch.Generator().manual_seed(5)
    width = SIGMA_INIT * c_skip(torch.tensor(SIGMA_INIT), SIGMA_DATA).item()
    fake = Gaussian(torch.zeros(2), width**2 * torch.eye(2))
    state = distil(
        data.sample,
        identity,
        iterations=800,
        seed=0,
        generator_freeze_samples=10**9,
        critic_noise_magnitude=m,
    )
    critic = state.trainees["fake_score"].network.with_critic
    for sigma in (0.1, 0.3):
        p, q = data.smoothed(sigma), fake.smoothed(sigma)
        x = torch.cat([p.sample(2000, generator), q.sample(2000, generator)])
        exact = log_ratio(p, q)(x)
        with torch.no_grad():
            error = critic(x, torch.full((len(x),), sigma))[1].flatten() - exact
        assert error.square().mean().sqrt() < 0.6 * exact.std()
