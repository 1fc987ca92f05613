"""Which sample comes when: arithmetic on (seed, position), no input or output, no random number generator of a library.

Samples are used in an endless sequence of global positions 0, 1, 2, ...; every epoch of `num_samples` positions is a
uniformly drawn permutation of all samples, and batches run across the ends of epochs, so nothing is dropped or padded.
The hash is written out here because the streams of numpy's and torch's generators may change between their versions.
The whole permutation of an epoch is held in memory: 8 bytes per sample, 10 MB for ImageNet.
"""

from functools import lru_cache

import numpy as np

_ORDER, _FLIP = 1, 2  # what a hash is used for, so that the uses are independent
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


def samples_at(seed: int, positions: range, num_samples: int, shuffle: bool = True) -> np.ndarray:
    """The sample ids at some global positions, int64 (len(positions),); without `shuffle` every epoch is in order."""
    numbers = np.arange(positions.start, positions.stop, positions.step)
    epochs, places = np.divmod(numbers, num_samples)
    if not shuffle:
        return places
    ids = np.empty(len(numbers), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        ids[here] = order(seed, int(epoch), num_samples)[places[here]]
    return ids


def global_batch(seed: int, samples_seen: int, size: int, num_samples: int) -> np.ndarray:
    """The sample ids of the batch that follows after `samples_seen` samples, int64 (size,)."""
    return samples_at(seed, range(samples_seen, samples_seen + size), num_samples)


def rank_share(samples_seen: int, size: int, rank: int, world_size: int) -> range:
    """The global positions of one rank's equal and contiguous part of the next global batch of `size` samples.

    Raises ValueError when the ranks cannot share the batch equally.
    """
    if size % world_size:
        raise ValueError(
            f"a global batch of {size} samples cannot be shared equally by {world_size} workers; "
            f"choose a batch that {world_size} divides"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is outside 0..{world_size - 1}")
    share = size // world_size
    start = samples_seen + rank * share
    return range(start, start + share)


def flips(seed: int, positions: range) -> np.ndarray:
    """Which samples are mirrored, bool (len(positions),): a fair coin of the seed and the global position."""
    hashes = keyed_hash(np.arange(positions.start, positions.stop), seed, _FLIP)
    return (hashes >> np.uint64(63)).astype(bool)
