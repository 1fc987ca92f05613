"""python -m pytest tests/unit/test_vectors.py

Pairs of vectors: every position's pair is the same wherever the stream starts and however many ranks share it.
"""

from itertools import islice

import numpy as np
import pytest
import torch

from nnce_dist.data.vectors import FreshPairs, VectorPairs, read_pairs


def normal(shift: float):
    return lambda number, generator: shift + torch.randn(number, 3, generator=generator, dtype=torch.float64)


FIXED = VectorPairs(torch.arange(60.0).view(20, 3), 1000 + torch.arange(45.0).view(15, 3))
FRESH = FreshPairs(normal(0.0), normal(5.0), "test")


def taken(stream, number: int, start: int = 0, batch: int = 12, rank: int = 0, world_size: int = 1, seed: int = 4):
    batches = stream.batches(seed, start, batch, rank, world_size)
    return [batch.x for batch in islice(batches, number)]


@pytest.mark.parametrize("stream", [FIXED, FRESH])
def test_a_position_has_its_pair_from_any_start_and_on_any_rank(stream):
    whole = torch.cat(taken(stream, 200))
    assert whole.dtype == torch.float32 and whole.shape == (2400, 2, 3)
    assert torch.equal(torch.cat(taken(stream, 3, start=1020)), whole[1020:1056])  # across the end of a block
    for world_size in (2, 3):
        parts = [taken(stream, 100, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat([torch.cat(shares) for shares in zip(*parts, strict=True)]), whole[:1200])
    assert not torch.equal(torch.cat(taken(stream, 200, seed=5)), whole)


def test_every_epoch_holds_every_vector_of_each_side_once_in_another_order():
    data, noise = torch.cat(taken(FIXED, 10, batch=6)).unbind(1)
    for side, vectors in ((data, FIXED.p), (noise, FIXED.q)):
        epochs = side.split(len(vectors))[:3]
        for epoch in epochs:
            assert torch.equal(epoch[epoch[:, 0].argsort()], vectors)
        assert not torch.equal(epochs[0], epochs[1])


def test_fresh_pairs_are_independent_draws_of_both_sides():
    data, noise = torch.cat(taken(FRESH, 10, batch=2048)).unbind(1)
    assert len(data.unique(dim=0)) == len(data)
    assert torch.cat([data, noise], 1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.04
    torch.testing.assert_close(noise.mean(0), torch.full((3,), 5.0), atol=0.04, rtol=0)


def test_a_digest_names_the_vectors():
    assert FIXED.digest == VectorPairs(FIXED.p.clone(), FIXED.q.clone()).digest != VectorPairs(FIXED.q, FIXED.p).digest
    assert FRESH.digest != FreshPairs(normal(0.0), normal(5.0), "other").digest


def test_pairs_are_read_from_an_npz(tmp_path):
    p, q = np.random.default_rng(0).normal(size=(7, 2)), np.arange(10).reshape(5, 2)
    np.savez(tmp_path / "pairs.npz", p=p, q=q)
    read = read_pairs(tmp_path / "pairs.npz")
    assert torch.equal(read[0], torch.from_numpy(p).float()) and torch.equal(read[1], torch.from_numpy(q).float())


GOOD = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"p": GOOD}, "q is not a file"),
        ({"p": GOOD, "q": np.zeros((4, 3))}, "p has 2 dimensions and q 3"),
        ({"p": GOOD, "q": np.zeros(4)}, r"q is float64 \(4,\)"),
        ({"p": GOOD, "q": np.full((4, 2), np.nan)}, "q has values that are not finite"),
        ({"p": GOOD, "q": np.array([[len, 1], [2, 3]], dtype=object)}, "allow_pickle"),
        ({"p": GOOD, "q": np.array([["a", "b"]] * 3)}, "q is <U1"),
    ],
)
def test_bad_vectors_are_named_in_one_line_and_nothing_is_unpickled(tmp_path, arrays, says):
    np.savez(tmp_path / "pairs.npz", **arrays)
    with pytest.raises(ValueError, match=says) as caught:
        read_pairs(tmp_path / "pairs.npz")
    assert "pairs.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_npz_is_named(tmp_path):
    (tmp_path / "text.npz").write_text("p,q")
    with pytest.raises(ValueError, match="text.npz"):
        read_pairs(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_pairs(tmp_path / "none.npz")
