"""pytest tests/unit/test_augment.py

EDM's augmentation: what is left alone, what each label means, and that an image's change is its own.
"""

import math

import pytest
import torch

from nnce_dist.models.augment import NUM_LABELS, Geometry, augmented, drawn, flipped, warped
from nnce_dist.training.seeding import SampleRandom


def geometry(**changes):
    """One image's geometry, all zero but the changes."""
    fields = {name: torch.zeros(1) for name in ("flip_x", "flip_y", "scale", "angle", "stretch", "axis")}
    fields["shift"] = torch.zeros(1, 2)
    return Geometry(**fields | {name: torch.tensor([value]) for name, value in changes.items()})


def blob(x=20.0, y=12.0, size=32):
    axis = torch.arange(float(size))
    return torch.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 8)[None, None]


def centre(image):
    axis = torch.arange(float(image.shape[-1]))
    total = image.sum()
    return ((image * axis).sum() / total).item(), ((image * axis[:, None]).sum() / total).item()


def spread(image):
    x, y = centre(image)
    axis = torch.arange(float(image.shape[-1]))
    wide, high = (image * (axis - x) ** 2).sum(), (image * (axis[:, None] - y) ** 2).sum()
    return (wide / image.sum()).sqrt().item(), (high / image.sum()).sqrt().item()


def test_probability_0_changes_nothing():
    x = torch.randn(64, 3, 16, 16)
    y, labels = augmented(x, SampleRandom.at(0, range(64)), 0.0)
    assert torch.equal(x, y) and torch.equal(labels, torch.zeros(64, NUM_LABELS))


def test_flips_alone_are_exact():
    x = torch.randn(4, 3, 16, 12)
    ones, zeros = torch.ones(4), torch.zeros(4)
    rest = {"scale": zeros, "angle": zeros, "stretch": zeros, "axis": ones, "shift": torch.zeros(4, 2)}
    assert torch.equal(flipped(x, Geometry(ones, zeros, **rest)), x.flip(3))
    assert torch.equal(flipped(x, Geometry(zeros, ones, **rest)), x.flip(2))
    assert not Geometry(ones, ones, **rest).affine.any()  # an axis without a stretch moves nothing


def test_half_are_mirrored_and_the_rest_acts_with_its_probability():
    labels = drawn(SampleRandom.at(1, range(4000)), 0.12).labels
    share = (labels != 0).float().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12])  # half the stretches keep the axes
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all(), share
    scale = labels[:, 2][labels[:, 2] != 0]
    assert abs(scale.std() - 1) < 0.15 and abs(scale.mean()) < 0.2


def test_only_flipped_images_are_copies_and_the_others_stay_near_the_range():
    x = 2 * torch.rand(256, 3, 16, 16) - 1
    y, labels = augmented(x, SampleRandom.at(2, range(256)))
    affine = labels[:, 2:].ne(0).any(1)
    assert 50 < affine.sum() < 180
    for i in (~affine).nonzero().flatten():
        same = x[i].flip(2) if labels[i, 0] else x[i]
        assert torch.equal(y[i], same.flip(1) if labels[i, 1] else same)
    assert y.isfinite().all() and y.abs().max() < 1.8  # white noise, the worst case for ringing
    smooth, _ = augmented(torch.nn.functional.avg_pool2d(x, 5, 1, 2), SampleRandom.at(2, range(256)))
    assert smooth.abs().max() <= 1


def test_without_movement_the_finer_grid_gives_the_image_back():
    x = torch.randn(1, 3, 17, 32)
    torch.testing.assert_close(warped(x, geometry()), x, atol=3e-5, rtol=0)
    constant = torch.full((1, 3, 16, 16), 0.7)
    moved = warped(constant, geometry(scale=-3.0, angle=0.5, stretch=1.5, axis=0.3, shift=[2.0, -3.0]))
    torch.testing.assert_close(moved, constant, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "name, change, label, position",
    [
        ("scale up", {"scale": 2.0}, (2, 2.0), (15.5 + 4.5 * 2**0.4, 15.5 - 3.5 * 2**0.4)),
        ("scale down", {"scale": -2.0}, (2, -2.0), (15.5 + 4.5 * 2**-0.4, 15.5 - 3.5 * 2**-0.4)),
        ("shift right", {"shift": [1.0, 0.0]}, (7, 1.0), (20 + 4, 12)),
        ("shift down", {"shift": [0.0, 1.0]}, (8, 1.0), (20, 12 + 4)),
        ("half turn", {"angle": math.pi}, (3, -2.0), (11, 19)),
        ("quarter turn", {"angle": math.pi / 2}, (4, 1.0), (15.5 - 3.5, 15.5 - 4.5)),
        ("stretch along x", {"stretch": 2.0}, (5, 2.0), (15.5 + 4.5 * 2**0.4, 15.5 - 3.5 * 2**-0.4)),
        (
            "stretch along y",
            {"stretch": 2.0, "axis": math.pi / 2},
            (6, 2.0),
            (15.5 + 4.5 * 2**-0.4, 15.5 - 3.5 * 2**0.4),
        ),
    ],
)
def test_each_label_is_its_movement(name, change, label, position):
    made = geometry(**change)
    assert made.labels[0, label[0]].item() == pytest.approx(label[1], abs=1e-6)
    assert centre(warped(blob(), made)) == pytest.approx(position, abs=0.2)


def test_a_stretch_keeps_the_area():
    wide, high = spread(warped(blob(16, 16), geometry(stretch=2.0)))
    assert wide == pytest.approx(2 * 2**0.4, rel=0.03) and high == pytest.approx(2 * 2**-0.4, rel=0.03)


def test_labels_of_flips_have_the_first_slots():
    made = Geometry(torch.ones(1), torch.zeros(1), *torch.zeros(4, 1), torch.zeros(1, 2))
    assert made.labels.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert geometry(flip_y=1.0).labels.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]


def test_an_image_is_changed_alike_in_any_batch():
    x = torch.randn(24, 3, 16, 16)
    together, labels = augmented(x, SampleRandom.at(3, range(24)), 0.5)
    halves = [augmented(x[part], SampleRandom.at(3, range(24)[part]), 0.5) for part in (slice(0, 7), slice(7, 24))]
    assert torch.equal(torch.cat([half[1] for half in halves]), labels)
    torch.testing.assert_close(torch.cat([half[0] for half in halves]), together, atol=1e-5, rtol=0)
