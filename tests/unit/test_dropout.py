"""python -m pytest tests/unit/test_dropout.py"""

import pytest
import torch

from nnce_dist.models.dropout import belonging_to, dropout, kept, mixed
from nnce_dist.training.seeding import dropout_keys

CPU = torch.device("cpu")


def keys(*ids: int, update: int = 0) -> torch.Tensor:
    return torch.cat([dropout_keys(3, range(i, i + 1), update, CPU) for i in ids])


def masks(own: torch.Tensor, *shape: int, layers: int = 1, p: float = 0.3) -> torch.Tensor:
    """What is left of ones (layers, rows, *shape) in layers that come one after the other."""
    with belonging_to(lambda: own):
        return torch.stack([dropout(torch.ones(shape), p, True) for _ in range(layers)])


def test_the_hash_is_the_published_one():
    def lowbias32(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    numbers = [0, 1, 2, 77, 2**31 - 1, 2**31, 2**32 - 1, 0xDEADBEEF]
    found = mixed(torch.tensor(numbers, dtype=torch.int64).to(torch.int32))
    assert [int(n) % 2**32 for n in found] == [lowbias32(n) for n in numbers]


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.97])
def test_a_place_is_dropped_with_the_probability_asked_for(p):
    left = kept(keys(*range(100))[:, None], 10_001, p)
    assert left.shape == (100, 10_001)
    error = (p * (1 - p)) ** 0.5
    assert abs(left.float().mean() - (1 - p)) < 4 * error / 1e3
    for axis, count in ((0, 100), (1, 10_001)):  # every place and every sample alike
        spread = left.float().mean(axis).std() / (error / count**0.5)
        assert 0.8 < spread < 1.2


def test_masks_of_samples_layers_and_neighbours_are_independent():
    left = masks(keys(*range(64)), 64, 4096, layers=2).ne(0).float().flatten(0, 1)  # (128, 4096)
    correlations = torch.corrcoef(left).fill_diagonal_(0)
    assert correlations.abs().max() < 6 / 4096**0.5
    centred = left - left.mean()
    for shift in (1, 2, 7, 64, 2048):
        assert abs((centred[:, shift:] * centred[:, :-shift]).mean()) < 5 * 0.21 / left.numel() ** 0.5


def test_the_mean_stays_and_the_gradient_meets_the_same_mask():
    x = torch.ones(50, 4, 32, 32, requires_grad=True)
    with belonging_to(lambda: keys(*range(50))):
        y = dropout(x, 0.25, True)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_a_sample_has_its_mask_in_any_batch():
    whole = masks(keys(5, 6, 7, 8), 4, 3, 5, layers=3)
    part = masks(keys(7, 8), 2, 3, 5, layers=3)
    assert torch.equal(whole[:, 2:], part)
    assert not torch.equal(whole, masks(keys(5, 6, 7, 8, update=1), 4, 3, 5, layers=3))


def test_rows_of_one_sample_have_masks_of_their_own():
    rows = masks(keys(5, 6), 6, 512)[0]  # three rows a sample, side by side
    assert torch.equal(rows[3:], masks(keys(6), 3, 512)[0])
    assert not torch.equal(rows[0], rows[1])
    with pytest.raises(ValueError, match="5 rows do not belong to 2 samples"):
        masks(keys(5, 6), 5, 512)


def test_without_samples_or_training_it_is_torch_s():
    x = torch.randn(4, 100)
    torch.manual_seed(1)
    expected = torch.nn.functional.dropout(x, 0.4)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.4, True), expected)
    with belonging_to(lambda: keys(1)):
        assert dropout(x, 0.4, False) is x or torch.equal(dropout(x, 0.4, False), x)
        assert torch.equal(dropout(x, 0.0, True), x)
    assert torch.equal(masks(keys(1, 2), 2, 9)[0] > 0, kept(keys(1, 2)[:, None] ^ mixed(torch.zeros(1).int()), 9, 0.3))
