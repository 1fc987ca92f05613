"""The order of samples as arithmetic.  Run: pytest tests/unit/test_shards.py"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnce_dist.data.shards import flips, global_batch, keyed_hash, mix, order, rank_share, samples_at

GOLDEN = Path(__file__).parents[1] / "golden" / "order.txt"
WORD = (1 << 64) - 1
seeds = st.integers(0, 2**31 - 1)


def splitmix64(state: int) -> int:
    """The reference in plain integers."""
    z = (state + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def consume(seed, num_samples, batch, plan):
    """The ids that the ranks see one after another: `plan` lists (world size, number of batches)."""
    seen, ids = 0, []
    for world_size, batches in plan:
        for _ in range(batches):
            for rank in range(world_size):
                ids.extend(samples_at(seed, rank_share(seen, batch, rank, world_size), num_samples))
            seen += batch
    return ids


def test_hash_is_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # seed 1234567
    states = [(1234567 + n * 0x9E3779B97F4A7C15) & WORD for n in range(3)]
    assert mix(np.array(states, np.uint64)).tolist() == published == [splitmix64(state) for state in states]


def test_keyed_hash_never_collides_and_depends_on_every_key():
    words = np.arange(200_000)
    hashes = keyed_hash(words, 1, 2, 3)
    assert len(np.unique(hashes)) == len(words)
    for keys in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3), (1, 2)]:
        assert not np.any(hashes == keyed_hash(words, *keys))


@given(seeds, st.integers(0, 10**6), st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation(seed, epoch, num_samples):
    assert sorted(order(seed, epoch, num_samples)) == list(range(num_samples))


@given(seeds, st.integers(1, 60), st.sampled_from([1, 2, 6, 12, 24]), st.data())
@settings(max_examples=80, deadline=None)
def test_no_sample_lost_or_repeated_while_the_number_of_ranks_changes(seed, num_samples, batch, data):
    divisors = [ranks for ranks in range(1, batch + 1) if batch % ranks == 0]
    plan = data.draw(st.lists(st.tuples(st.sampled_from(divisors), st.integers(1, 5)), min_size=1, max_size=5))
    ids = consume(seed, num_samples, batch, plan)
    assert ids == consume(seed, num_samples, batch, [(1, sum(batches for _, batches in plan))])
    for epoch in range(len(ids) // num_samples):
        assert sorted(ids[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@given(seeds, st.integers(1, 50), st.integers(0, 200), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_resuming_anywhere_continues_the_sequence(seed, num_samples, position, size):
    whole = global_batch(seed, 0, position + size, num_samples)
    assert np.array_equal(global_batch(seed, position, size, num_samples), whole[position:])


def test_ranks_get_disjoint_equal_parts_of_the_global_batch():
    for world_size in (1, 2, 3, 4, 6, 8, 12, 24):
        shares = [rank_share(960, 24, rank, world_size) for rank in range(world_size)]
        assert [position for share in shares for position in share] == list(range(960, 984))
        assert {len(share) for share in shares} == {24 // world_size}


def test_shares_that_cannot_be_equal_are_refused():
    with pytest.raises(ValueError, match="batch of 64 samples cannot be shared equally by 3 workers"):
        rank_share(0, 64, 0, 3)
    with pytest.raises(ValueError, match="rank 2"):
        rank_share(0, 64, 2, 2)


def test_orders_of_epochs_and_seeds_are_unrelated_and_uniform():
    """Over 3840 epochs of 16 samples: each sample's place, and the pair that comes first, by chi-square."""
    orders = np.stack([order(5, epoch, 16) for epoch in range(3840)])
    for sample in range(16):
        places = np.bincount(np.argwhere(orders == sample)[:, 1], minlength=16)
        assert ((places - 240) ** 2 / 240).sum() < 45  # 15 degrees of freedom: P = 8e-5
    pairs = np.bincount(orders[:, 0] * 16 + orders[:, 1], minlength=256).reshape(16, 16)[~np.eye(16, dtype=bool)]
    assert ((pairs - 16) ** 2 / 16).sum() < 326  # 239 degrees of freedom: P = 1.5e-4
    assert not np.array_equal(order(5, 0, 20), order(6, 0, 20))


def test_order_does_not_depend_on_random_state():
    first = order(1, 1, 99).copy()
    order.cache_clear()
    np.random.seed(0)
    assert np.array_equal(first, order(1, 1, 99))


def test_flips_belong_to_the_position_and_are_fair():
    drawn = flips(3, range(20_000))
    assert abs(drawn.mean() - 0.5) < 0.015  # 4 standard deviations
    assert abs((drawn[1:] == drawn[:-1]).mean() - 0.5) < 0.015
    assert np.array_equal(flips(3, range(500, 600)), drawn[500:600])
    assert abs((drawn == flips(4, range(20_000))).mean() - 0.5) < 0.015


def test_without_shuffling_every_epoch_is_in_order():
    assert samples_at(9, range(4, 13), 5, shuffle=False).tolist() == [4, 0, 1, 2, 3, 4, 0, 1, 2]


def golden_lines():
    for seed, epoch, num_samples in [
        (0, 0, 10),
        (0, 1, 10),
        (7, 0, 17_000),
        (7, 123, 17_000),
        (2**31 - 1, 5, 1_281_167),
    ]:
        ids = " ".join(map(str, order(seed, epoch, num_samples)[:12]))
        yield f"order seed={seed} epoch={epoch} num_samples={num_samples}: {ids}"
    yield "flips seed=7 first=1000: " + "".join(str(int(flip)) for flip in flips(7, range(1000, 1064)))


def test_golden_order():
    """A change of this file changes the data of every run that is resumed: it needs a stated reason."""
    assert list(golden_lines()) == GOLDEN.read_text().splitlines()
