"""Decoded pictures of a shard set by number, and as what networks see."""

import numpy as np

from .bad_samples import BadSamples
from .decoding import Decoder
from .images import decode
from .index import ShardSet

MEMORY_BOUND = 2**30  # sets of at most so many decoded bytes are kept decoded


class Pictures:
    """Pixels of the samples of a shard set; kept in memory once decoded if all of them fit."""

    def __init__(self, shards: ShardSet, size: int, resize: bool, bad: BadSamples):
        self._shards, self._size, self._resize, self._bad = shards, size, resize, bad
        self.used = np.arange(len(shards))  # the sample that a number stands for: itself, or one in a bad one's place
        shape = (len(shards), 3, size, size)
        self._kept = np.empty(shape, np.uint8) if np.prod(shape, dtype=np.int64) <= MEMORY_BOUND else None
        self._known = np.zeros(len(shards), bool)

    @property
    def are_kept(self) -> bool:
        """Whether each is decoded once only."""
        return self._kept is not None

    def read(self, samples: np.ndarray, decoder: Decoder | None = None) -> np.ndarray:
        """Pixels uint8 (n, 3, size, size) of the samples with these numbers (n,).

        A `decoder` is for pictures that are not kept: they are then its own until it is used again.
        """
        if decoder:
            return self._decoded_by(decoder, samples)
        if self._kept is None:
            pixels = np.empty((len(samples), 3, self._size, self._size), np.uint8)
            for slot, sample in zip(pixels, samples, strict=True):
                slot[...] = self._decode(sample)
            return pixels
        for sample in samples[~self._known[samples]]:
            self._kept[sample] = self._decode(sample)
            self._known[sample] = True  # only now: another thread may be reading
        return self._kept[samples]

    def decoder(self, most: int) -> Decoder:
        """A process that decodes these pictures; see `read`."""
        return Decoder(most, self._size, self._resize)

    def _decoded_by(self, decoder: Decoder, samples: np.ndarray) -> np.ndarray:
        read = [self._bad.readable(sample, self._shards.picture) for sample in samples.tolist()]
        pixels, refused = decoder.decode([encoded for _, encoded in read])
        for number, (sample, (used, _)) in enumerate(zip(samples, read, strict=True)):
            if number in refused:  # once more here, where it is known what is to be done about it
                pixels[number] = self._decode(sample)
            else:
                self.used[sample] = used  # only now: another thread may be about to tell what was used
        return pixels

    def _decode(self, sample: int) -> np.ndarray:
        self.used[sample], pixels = self._bad.readable(int(sample), self._picture)
        return pixels

    def _picture(self, sample: int) -> np.ndarray:
        return decode(self._shards.picture(sample), self._size, self._resize, _Name(self._shards, sample))


class _Name:
    """What messages call a sample; put together only if there is a message."""

    def __init__(self, shards: ShardSet, sample: int):
        self._shards, self._sample = shards, sample

    def __str__(self) -> str:
        return self._shards.name(self._sample)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels 0..255 (uint8) as float32 in [-1, 1]: the inverse of clip(127.5 x + 128) cut to integers."""
    x = np.divide(pixels, 127.5, dtype=np.float32)
    x -= 1
    return x
