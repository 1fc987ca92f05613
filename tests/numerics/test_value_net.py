"""pytest tests/numerics/test_value_net.py

The energy network V: the paper's size, what it sees, and that its small form learns at the learning rate in use.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from nnce_dist.models.value_net import ValueNet, local_contrast, squashed


def discs(num, generator):
    """Coloured discs on grey (num, 3, 32, 32): smooth pictures without fine detail."""
    colour = 2 * torch.rand(num, 3, 1, 1, generator=generator) - 1
    centre = torch.rand(num, 2, 1, 1, generator=generator) - 0.5
    axis = torch.linspace(-1, 1, 32)
    inside = ((axis - centre[:, :1]) ** 2 + (axis[:, None] - centre[:, 1:]) ** 2 < 0.15).float()
    return inside * colour - 0.5 * (1 - inside)


def test_the_papers_network_has_its_size():
    with torch.device("meta"):
        network = ValueNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_134_595


def test_squashed_inputs_keep_sign_and_size_within_bounds():
    x = torch.tensor([-200.0, -1.0, 0.0, 0.5, 200.0]).reshape(1, 1, 1, 5)
    ratio, size = squashed(x)[0, :, 0]
    torch.testing.assert_close(ratio, torch.tensor([-400 / 201, -1, 0, 1 / 1.5, 400 / 201]))
    torch.testing.assert_close(size, (1 + x.abs()).log().flatten())


def test_contrast_is_the_distance_from_the_neighbours_mean():
    assert (local_contrast(torch.full((1, 3, 5, 5), -0.7)).abs() < 1e-5).all()  # also at the edges
    dot = torch.zeros(1, 1, 5, 5)
    dot[..., 2, 2] = 0.9
    torch.testing.assert_close(local_contrast(dot)[0, 0, 2, 1:3], torch.tensor([2.0, 9.0]).log())
    torch.testing.assert_close(local_contrast(-dot), local_contrast(dot))


@pytest.mark.parametrize("patch_size", [1, 4])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_value_per_image(patch_size, squash, contrast, num_classes):
    torch.manual_seed(0)
    network = ValueNet(3, 8, patch_size, squash, contrast, num_classes)
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    labels = torch.eye(3)[[0, 1, 2, 0]] if num_classes else None
    values = network(x, labels)
    assert values.shape == (4,) and torch.equal(values, network(x))  # the classes start equal
    values.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert x.grad.flatten(1).any(1).all()
    for i in range(4):  # one image's value does not depend on the others
        torch.testing.assert_close(network(x[i : i + 1])[0], values[i])


def test_a_class_changes_the_value_once_learned():
    torch.manual_seed(0)
    network, x = ValueNet(3, 8, num_classes=3), torch.randn(1, 3, 16, 16)
    for block in network.blocks:
        torch.nn.init.normal_(block.affine.weight)
    first, second = network(x.expand(2, -1, -1, -1), torch.eye(3)[:2])
    assert (first - second).abs() > 1e-4 and torch.isfinite(network(x))


def test_values_are_float32_under_autocast():
    torch.manual_seed(0)
    network, x = ValueNet(3, 8, 4, squash=True), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        values = network(x)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, network(x), atol=0.02, rtol=0.02)


def gap_after_training(num_steps, **options):
    """Energy of slightly noisy pictures minus that of clean ones, and the largest late temporal-difference error."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = ValueNet(3, 16, 4, **options)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    magnitude, errors = 100.0, []
    for _ in range(num_steps):
        real, fake = discs(16, generator), discs(16, generator) + 0.1 * torch.randn(16, 3, 32, 32, generator=generator)
        earlier = fake + 80 * torch.randn(fake.shape, generator=generator)
        energy_real, energy_fake = network(torch.cat([real, fake])).chunk(2)
        shift = math.log(magnitude)
        loss = F.softplus(energy_real + shift) + magnitude * F.softplus(-energy_fake - shift)
        loss = loss + energy_real**2 + energy_fake**2
        error = (network(earlier) - energy_fake.detach()).square().mean()
        optimiser.zero_grad()
        (loss.mean() + 0.3 * error).backward()
        optimiser.step()
        errors.append(error.item())
    return (energy_fake - energy_real).mean().item(), max(errors[-num_steps // 2 :])


def test_the_small_network_tells_fine_noise_apart_and_values_pure_noise():
    gap, error = gap_after_training(60, squash=True, contrast=True)
    assert gap > 0.5  # the loss's optimum is 0.85
    assert error < 0.3


def test_without_contrast_the_same_training_is_blind():
    gap, _ = gap_after_training(60, squash=True)
    assert abs(gap) < 0.1
