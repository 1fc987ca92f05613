"""The order of samples as arithmetic.  Run: pytest tests/unit/test_shards.py"""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnce_dist.data.shards import Order, flips, keyed_hash, mix, mixing_window, order, rank_share

GOLDEN = Path(__file__).parents[1] / "golden" / "order.txt"
WORD = (1 << 64) - 1
seeds = st.integers(0, 2**31 - 1)


def splitmix64(state: int) -> int:
    """The reference in plain integers."""
    z = (state + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def uniform(num_samples):
    return Order(np.array([num_samples]), np.array([1]))


@st.composite
def orders(draw):
    """Uniform and windowed orders of uneven shards, their counts, sizes and window."""
    shards = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 1000)), min_size=1, max_size=30))
    counts, sizes = np.array(shards).T
    window = draw(st.one_of(st.just(0), st.integers(sizes.max(), sizes.sum())))
    return Order(counts, sizes, int(window), draw(st.booleans())), counts, sizes, window


def consume(order, seed, batch, plan, seen=0):
    """The ids that the ranks see one after another: `plan` lists (world size, number of batches)."""
    ids = []
    for world_size, batches in plan:
        for _ in range(batches):
            for rank in range(world_size):
                ids.extend(order.samples_at(seed, rank_share(seen, batch, rank, world_size)))
            seen += batch
    return ids


@pytest.mark.parametrize(("window", "peak"), [(0, 65), (80, 81)])
def test_the_order_takes_the_memory_that_it_says(window, peak):
    """Bytes per sample, of a set a quarter as large as ImageNet."""
    counts, samples = np.full(320, 1000), 320_000
    uniform(9).samples_at(0, range(9))  # what numpy keeps for itself
    Order.epoch.cache_clear(), order.cache_clear()
    tracemalloc.start()
    try:
        used = Order(counts, np.full(320, 1), window)
        for epoch in range(6):  # more than are held
            used.samples_at(0, range(epoch * samples, epoch * samples + 256))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        Order.epoch.cache_clear(), order.cache_clear()
    assert 39 < held / samples < 42 and peak - 2 < most / samples < peak + 1


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
def test_every_uniform_epoch_is_a_permutation(seed, epoch, num_samples):
    assert sorted(order(seed, epoch, num_samples)) == list(range(num_samples))


@given(orders(), seeds, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_every_epoch_is_a_permutation(made, seed, epoch):
    order, *_ = made
    assert sorted(order.epoch(seed, epoch)) == list(range(order.num_samples))


@given(orders(), seeds, st.sampled_from([1, 2, 6, 12, 24]), st.integers(0, 500), st.data())
@settings(max_examples=150, deadline=None)
def test_no_sample_lost_or_repeated_while_the_number_of_ranks_changes(made, seed, batch, start, data):
    order, *_ = made
    divisors = [ranks for ranks in range(1, batch + 1) if batch % ranks == 0]
    plan = data.draw(st.lists(st.tuples(st.sampled_from(divisors), st.integers(1, 5)), min_size=1, max_size=5))
    ids = consume(order, seed, batch, plan, start)
    assert ids == consume(order, seed, batch, [(1, sum(batches for _, batches in plan))], start)
    first = -start % order.num_samples  # where the first whole epoch begins
    for epoch in range(first, len(ids) - order.num_samples + 1, order.num_samples):
        assert sorted(ids[epoch : epoch + order.num_samples]) == list(range(order.num_samples))


@pytest.mark.parametrize("window", [0, 200])
def test_four_ranks_then_three_then_one_go_on_where_the_others_stopped(window):
    counts, sizes = np.array([7, 5, 9, 3, 8, 6, 11, 4]), np.array([70, 50, 90, 30, 80, 60, 100, 40])
    order = Order(counts, sizes, window)
    ids = consume(order, 5, 12, [(4, 7), (3, 8), (1, 9)])
    assert ids == order.samples_at(5, range(24 * 12)).tolist()


@given(orders(), seeds, st.integers(0, 200), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_resuming_anywhere_continues_the_sequence(made, seed, position, size, step):
    order, counts, sizes, window = made
    whole = order.samples_at(seed, range(position + size))
    again = Order(counts.copy(), sizes.copy(), int(window), order._shuffle)  # another process
    assert np.array_equal(again.samples_at(seed, range(position, position + size, step)), whole[position::step])


@given(orders(), seeds, st.integers(0, 400), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_shards_at_are_those_of_the_samples_by_first_use(made, seed, position, size):
    order, counts, *_ = made
    coming = np.repeat(np.arange(len(counts)), counts)[order.samples_at(seed, range(position, position + size))]
    assert order.shards_at(seed, range(position, position + size)).tolist() == list(dict.fromkeys(coming.tolist()))


@given(orders(), seeds)
@settings(max_examples=150, deadline=None)
def test_the_shards_in_use_fit_the_window_and_one_shard(made, seed):
    order, counts, sizes, window = made
    if window and order._shuffle:
        shards = np.repeat(np.arange(len(counts)), counts)[order.epoch(seed, 0)]
        in_use = [set(shards[: place + 1]) & set(shards[place:]) for place in range(len(shards))]
        assert max(sizes[list(shards)].sum() for shards in in_use) <= window + sizes.max()


def test_the_windowed_order_mixes_as_many_shards_as_it_holds():
    """1,024 samples against the uniform order: distinct shards, and how often neighbours come from one shard."""
    counts, sizes = np.full(1280, 100), np.full(1280, 1000)
    shards = np.repeat(np.arange(1280), 100)

    def quality(window, place):
        batch = shards[Order(counts, sizes, window).samples_at(3, range(place, place + 1024))]
        return len(np.unique(batch)), (batch[1:] == batch[:-1]).mean()

    for in_use, places in ((240, (30_000, 64_000, 100_000)), (120, (0, 128_000 - 1024))):
        for place in places:  # within the epoch, and at its ends
            distinct, neighbours = quality(240_000, place)
            assert 0.85 < distinct / (in_use * (1 - np.exp(-1024 / in_use))) < 1.15
            assert abs(neighbours - 1 / in_use) < 4 * (1 / in_use / 1023) ** 0.5  # 4 standard deviations
    distinct, neighbours = quality(0, 64_000)
    assert 0.95 < distinct / (1280 * (1 - np.exp(-1024 / 1280))) < 1.05 and neighbours < 4.5 / 1023


def test_the_windowed_order_places_samples_uniformly_over_epochs():
    """Over 4,000 epochs of 8 shards of 2: each sample's place, and whether it comes before its shard's other sample."""
    order = Order(np.full(8, 2), np.full(8, 10), window=35)
    epochs = np.stack([np.argsort(order.epoch(5, epoch)) for epoch in range(4000)])  # (epochs, samples): places
    for sample in range(16):
        places = np.bincount(epochs[:, sample], minlength=16)
        assert ((places - 250) ** 2 / 250).sum() < 45  # 15 degrees of freedom: P = 8e-5
    assert abs((epochs[:, 0] < epochs[:, 1]).mean() - 0.5) < 0.032  # 4 standard deviations


def test_the_window_is_all_that_fits():
    sizes = np.array([40, 50, 60])
    assert [mixing_window(sizes, room, wanted) for room, wanted in ((0, 0), (150, 0), (10**9, 150))] == [0, 0, 0]
    many = np.full(100, 10)
    assert [mixing_window(many, room, wanted) for room, wanted in ((999, 0), (0, 300), (999, 300))] == [499, 300, 300]
    with pytest.raises(ValueError, match="data.cache_bytes=149 and data.shuffle_bytes=0 mix fewer than four shards"):
        mixing_window(sizes, 149, 0)


def test_ranks_get_disjoint_equal_parts_of_the_global_batch():
    for world_size in (1, 2, 3, 4, 6, 8, 12, 24):
        shares = [rank_share(960, 24, rank, world_size) for rank in range(world_size)]
        assert [position for share in shares for position in share] == list(range(960, 984))
        assert {len(share) for share in shares} == {24 // world_size}


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_any_number_of_ranks_shares_the_same_micro_batches(size, micro_batch, world_size):
    starts = list(range(0, size, micro_batch))
    if len(starts) < world_size:
        with pytest.raises(ValueError, match="leaves some of"):
            rank_share(0, size, 0, world_size, micro_batch)
        return
    shares = [rank_share(7, size, rank, world_size, micro_batch) for rank in range(world_size)]
    assert [position for share in shares for position in share] == list(range(7, 7 + size))
    assert [start for share in shares for start in share[::micro_batch]] == [7 + start for start in starts]
    lengths = [len(share[::micro_batch]) for share in shares]
    assert max(lengths) - min(lengths) <= 1


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
    in_order = Order(np.array([2, 3]), np.array([1, 1]), shuffle=False)
    assert in_order.samples_at(9, range(4, 13)).tolist() == [4, 0, 1, 2, 3, 4, 0, 1, 2]


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
    for seed, epoch, window in [(0, 0, 1_300_000), (7, 123, 500_000)]:
        windowed = Order(np.arange(50, 150), np.arange(50_000, 150_000, 1000), window)
        ids = " ".join(map(str, windowed.epoch(seed, epoch)[::1000][:12]))
        yield f"windowed seed={seed} epoch={epoch} window={window}: {ids}"
    yield "flips seed=7 first=1000: " + "".join(str(int(flip)) for flip in flips(7, range(1000, 1064)))


def test_golden_order():
    """A change of this file changes the data of every run that is resumed: it needs a stated reason."""
    assert list(golden_lines()) == GOLDEN.read_text().splitlines()
