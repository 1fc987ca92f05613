"""Which sample comes when: arithmetic on (seed, position), no input or output, no random number generator of a library.

Samples are used in an endless sequence of global positions 0, 1, 2, ...; every epoch of `num_samples` positions is a
permutation of all samples, and batches run across the ends of epochs, so nothing is dropped or padded. The permutation
is drawn uniformly where all shards can be kept near, and otherwise mixes as many shards as can. The hash is written out
here because the streams of numpy's and torch's generators may change between their versions. The permutation of an
epoch is held in memory: 8 bytes per sample, 10 MB for ImageNet.
"""

from functools import lru_cache

import numpy as np

_ORDER, _FLIP, _SHARDS = 1, 2, 3  # what a hash is used for, so that the uses are independent
_WORD = (1 << 64) - 1


def mix(words: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea, Flood 2014), a bijection of 64-bit words (N,)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def keyed_hash(words: np.ndarray, *keys: int) -> np.ndarray:
    """A bijection of 64-bit words (N,), another one for every choice of `keys`."""
    secret = np.zeros(1, np.uint64)
    for key in keys:
        secret = mix(secret ^ mix(np.array([key & _WORD], np.uint64)))
    return mix(mix(words.astype(np.uint64)) ^ secret)


@lru_cache(maxsize=4)  # a batch touches one or two epochs; training and evaluation sets may alternate
def order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The epoch's permutation of the sample ids, int64 (num_samples,), read-only.

    Sorting by a hash without collisions makes every order of the samples equally likely.
    """
    hashes = keyed_hash(np.arange(num_samples), seed, _ORDER, epoch)
    permutation = np.argsort(hashes)
    permutation.flags.writeable = False
    return permutation


class Order:
    """The order in which the samples of a shard set are used; equal for equal arguments, wherever the shards lie.

    `counts` are the samples and `sizes` the bytes of each shard, int64 (S,). `window` 0 draws every epoch uniformly;
    otherwise few shards are needed at a time: they are laid end to end in an order drawn by hash, every sample is moved
    from the middle of its shard by a draw from [-window/2, window/2) bytes, reflected at both ends, and the samples are
    taken as they now lie. So a shard is in use while its middle is less than window/2 away. A batch is a uniform draw
    from the W shards of a window: of B samples it meets about W (1 - exp(-B/W)) shards, at the very beginning and
    end of an epoch, where W is halved, no fewer than half of that. Without `shuffle` every epoch is in order.
    """

    def __init__(self, counts: np.ndarray, sizes: np.ndarray, window: int = 0, shuffle: bool = True):
        self._sizes, self._shuffle, self.window = sizes, shuffle, window
        self._shard_of = np.repeat(np.arange(len(counts)), counts)

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self._shard_of)

    @lru_cache(maxsize=4)  # noqa: B019 (a process opens two or three sets; a batch touches one or two epochs)
    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The epoch's permutation of the sample ids, int64 (num_samples,)."""
        if not self._shuffle:
            return np.arange(self.num_samples)
        return self._windowed(seed, epoch) if self.window else order(seed, epoch, self.num_samples)

    def _windowed(self, seed: int, epoch: int) -> np.ndarray:
        shards = np.argsort(keyed_hash(np.arange(len(self._sizes)), seed, _SHARDS, epoch))
        total, middles = float(self._sizes.sum()), np.empty(len(shards))
        middles[shards] = np.cumsum(self._sizes[shards]) - self._sizes[shards] / 2
        hashes = keyed_hash(np.arange(self.num_samples), seed, _ORDER, epoch)
        draws = (hashes >> np.uint64(11)) * 2.0**-53 - 0.5  # exact; the sums below are rounded alike on every machine
        places = np.abs(middles[self._shard_of] + draws * self.window)
        return np.argsort(total - np.abs(total - places), kind="stable")

    def samples_at(self, seed: int, positions: range) -> np.ndarray:
        """The sample ids at some global positions, int64 (len(positions),)."""
        numbers = np.arange(positions.start, positions.stop, positions.step)
        epochs, places = np.divmod(numbers, self.num_samples)
        ids = np.empty(len(numbers), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self.epoch(seed, int(epoch))[places[here]]
        return ids

    def shards_at(self, seed: int, positions: range) -> np.ndarray:
        """The shards that the samples at some global positions lie in, by first use, int64."""
        shards = self._shard_of[self.samples_at(seed, positions)]
        first = np.full(len(self._sizes), len(shards))
        first[shards[::-1]] = np.arange(len(shards))[::-1]  # of several the last one stays, which is the first use
        return np.argsort(first)[: np.count_nonzero(first < len(shards))]


def mixing_window(sizes: np.ndarray, room: int, wanted: int) -> int:
    """The bytes over which the samples of shards of these sizes (S,) are mixed; 0 means over all of them.

    At most `wanted`, and at most half of the `room` for copies of shards, so that the shards of a window and those that
    come next fit together; 0 stands for no limit. Raises ValueError where that leaves fewer than four shards.
    """
    limits = [limit for limit in (wanted, room // 2 if sizes.sum() > room else 0) if limit]
    if not limits or min(limits) >= sizes.sum():
        return 0
    if min(limits) < 4 * sizes.max():
        raise ValueError(
            f"data.cache_bytes={room} and data.shuffle_bytes={wanted} mix fewer than four shards of {sizes.max()} bytes"
            " (half of the cache is for the shards that come next); raise them, or make smaller shards"
        )
    return min(limits)


def rank_share(samples_seen: int, size: int, rank: int, world_size: int, micro_batch: int = 0) -> range:
    """The global positions of one rank's contiguous part of the next global batch of `size` samples.

    Parts are whole micro-batches, the same ones for any number of ranks, and as equal as they divide; without
    micro-batches parts are equal. Raises ValueError when that cannot be, or a rank would have none.
    """
    if not micro_batch and size % world_size:
        raise ValueError(
            f"a global batch of {size} samples cannot be shared equally by {world_size} workers; "
            f"choose a batch that {world_size} divides, or micro-batches"
        )
    micro_batch = micro_batch or size // world_size
    count = -(-size // micro_batch)
    if count < world_size:
        raise ValueError(
            f"a global batch of {size} samples in {count} micro-batches of {micro_batch} leaves some of {world_size} "
            "workers without any; choose smaller micro-batches"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside 0..{world_size - 1}")
    start, stop = (min(count * r // world_size * micro_batch, size) for r in (rank, rank + 1))
    return range(samples_seen + start, samples_seen + stop)


def flips(seed: int, positions: range) -> np.ndarray:
    """Which samples are mirrored, bool (len(positions),): a fair coin of the seed and the global position."""
    hashes = keyed_hash(np.arange(positions.start, positions.stop), seed, _FLIP)
    return (hashes >> np.uint64(63)).astype(bool)
