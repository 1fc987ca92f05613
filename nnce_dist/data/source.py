"""What `pack` takes: samples that are cut into parts, in order; a part travels to another process and is read there."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

DESCRIPTION = "dataset.json"  # beside shards that `pack` wrote


@dataclass(frozen=True)
class Sample:
    """One picture with its label."""

    name: str  # where it came from, for messages
    picture: bytes  # encoded, JPEG or PNG
    others: dict[str, bytes]  # its label and what else belongs to it, by extension: {"cls": b"7"}


class Samples(Protocol):
    """A sequence of samples; a slice of it is small and can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> "Samples": ...

    def __iter__(self) -> Iterator[Sample]: ...


@dataclass(frozen=True)
class Source:
    """Samples, and what tells them from others."""

    samples: Samples
    identity: str  # equal for equal samples in the same order only
    num_classes: int
    class_names: tuple[str, ...] = ()  # none where the source does not name its classes
    left_out: str = ""  # what of the source is not packed, for people


def labelled(name: str, picture: bytes, label: int) -> Sample:
    """A picture of a class."""
    return Sample(name, picture, {"cls": str(int(label)).encode()})
