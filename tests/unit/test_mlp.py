"""Run: pytest tests/unit/test_mlp.py

The small networks for vectors keep the contracts of the large ones.
"""

import math

import pytest
import torch

from nnce_dist.models.mlp import HarmonicMLP, ValueMLP
from nnce_dist.models.preconditioning import EDMPrecond

X, SIGMA = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.01, 0.1, 1.0, 10.0, 80.0])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_backbone_contract():
    denoiser = EDMPrecond(HarmonicMLP(dim=3, width=16, num_classes=4))
    denoised, logits = denoiser.with_critic(X, SIGMA)
    assert denoised.shape == X.shape and logits.shape == (5, 1, 1, 1)
    torch.testing.assert_close(denoised, denoiser(X, SIGMA))
    torch.testing.assert_close(denoised, denoiser(X, SIGMA, torch.zeros(5, 4)))
    assert not torch.allclose(denoised, denoiser(X, SIGMA, torch.eye(4)[[0, 1, 2, 3, 0]]))
    assert all(name.startswith("model.") for name in denoiser.state_dict())


def test_backbone_refuses_augmentation():
    with pytest.raises(ValueError, match="augmentation"):
        HarmonicMLP(dim=3)(X, SIGMA.log(), None, torch.zeros(5, 9))


def test_value_grows_no_faster_than_the_logarithm():
    """Noise of standard deviation 80 must not drown the data: a factor of 10^6 adds a few units, not millions."""
    value = ValueMLP(dim=3, width=16)
    growth = (value(1e6 * X.sign()) - value(X.sign())).abs()
    assert growth.shape == (5,) and 0 < growth.max() < math.log(1e6)


def test_value_takes_classes():
    value = ValueMLP(dim=3, num_classes=2)
    torch.testing.assert_close(value(X), value(X, torch.zeros(5, 2)))
    assert not torch.allclose(value(X), value(X, torch.ones(5, 2)))
