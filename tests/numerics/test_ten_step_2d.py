"""Run: pytest tests/numerics/test_ten_step_2d.py

The ten-step sampler learns on two-dimensional densities, because of the ratio, and not when its value is spoilt.

Thresholds come from runs of this file's recipes (8,000-iteration teachers): ring MMD^2 7.9e-3 before and 1.4e-3 to
1.7e-3 after tuning, checkerboard 3.4e-2 and 1.3e-3 to 1.7e-3; sliced W1 .040 to .014-.017 and .146 to .021-.028.
"""

import functools
import statistics

import pytest
from beds import teacher
from tuning import RECIPES, distances, samples, settings, tune, untuned

from nnce_dist.config.schema import Objective, TenStep

pytestmark = pytest.mark.slow

SEEDS = range(3)
FOUR_STEPS = {"num_steps": 4, "rho": 4, "keep_last_noise": True, "sampler_batches": 4}


def before(bed: str, chosen: TenStep) -> tuple[float, float]:
    """Sliced W1 and MMD^2 of the untuned sampler."""
    return distances(bed, samples(untuned(teacher(bed), chosen)))


def after(bed: str, chosen: TenStep, iterations: int, seed: int, gamma: float = 1.0) -> tuple[float, float]:
    """Sliced W1 and MMD^2 of the tuned sampler, M = 100."""
    objective = Objective(ratio_regularisation=gamma)
    return distances(bed, samples(tune(bed, teacher(bed), chosen, objective, iterations, seed)))


@functools.lru_cache
def ten_steps(bed: str, seed: int, **changes: float) -> tuple[float, float]:
    """`after` with ten steps and the bed's recipe; the same run serves several tests.

    gamma = .1, because at 1 the ring's weights drift: its sliced W1 then misses a half on some seeds (.017 to .023).
    """
    lr, iterations = RECIPES[bed]
    return after(bed, settings(lr, **changes), iterations, seed, gamma=0.1)


@pytest.mark.parametrize("bed", RECIPES)
def test_tuning_halves_the_distances(bed):
    w1, mmd = before(bed, settings(0))
    tuned = [ten_steps(bed, seed) for seed in SEEDS]
    assert max(mmd_tuned for _, mmd_tuned in tuned) <= mmd / 2
    assert statistics.median(w1_tuned for w1_tuned, _ in tuned) <= w1 / 2


@pytest.mark.parametrize("bed", RECIPES)
def test_the_ratio_does_it(bed):
    """Larger noise scales alone, which the entropy term brings, already mend much of the checkerboard: not this much.

    Seen without the energy: sliced W1 .088 and .042, MMD^2 3.3e-2 and 4.3e-3.
    """
    w1, mmd = ten_steps(bed, 0, energy_weight=0.0)
    tuned = [ten_steps(bed, seed) for seed in SEEDS]
    assert max(mmd_tuned for _, mmd_tuned in tuned) <= mmd / 2
    assert max(w1_tuned for w1_tuned, _ in tuned) <= 0.8 * w1


@pytest.mark.parametrize("bed", RECIPES)
def test_flipped_sign_of_the_value_makes_it_worse(bed):
    """Seen: sliced W1 .23 and .37."""
    w1, mmd = before(bed, settings(0))
    w1_flipped, mmd_flipped = ten_steps(bed, 0, energy_weight=-1.0)
    assert w1_flipped > 1.5 * w1 and mmd_flipped > 1.5 * mmd


def test_variance_preserving_steps_learn_too():
    """Seen: sliced W1 .069 to .030, MMD^2 7.2e-3 to 1.8e-3."""
    chosen = settings(1e-4, schedule="var")
    w1, mmd = before("checkerboard", chosen)
    w1_tuned, mmd_tuned = after("checkerboard", chosen, 300, 0)
    assert w1_tuned <= w1 / 2 and mmd_tuned <= mmd / 2


def test_four_steps_learn_and_need_the_value_regression():
    """Seen on two seeds: MMD^2 .133 to .0065-.0082 with the regression, .0151-.0155 without; W1 .224 to .03-.04.

    Ten steps do without it in two dimensions (ring 2.8e-3, checkerboard 1.7e-3): most of them end near the data, where
    the energy itself says enough.
    """
    chosen, mutated = settings(1e-4, **FOUR_STEPS), settings(1e-4, value_weight=0.0, **FOUR_STEPS)
    w1, mmd = before("ring", chosen)
    w1_tuned, mmd_tuned = after("ring", chosen, 600, 0)
    assert mmd_tuned <= mmd / 12 and w1_tuned <= w1 / 4
    assert after("ring", mutated, 600, 0)[1] > mmd / 12
