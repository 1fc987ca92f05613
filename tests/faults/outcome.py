"""What a row of the fault catalogue comes to."""

from dataclasses import dataclass

from bed import Bed
from invariants import Count, Run, verify


class NotHere(Exception):  # noqa: N818 - says why, and is no error
    """The fault cannot be done on this machine."""


@dataclass(frozen=True)
class Outcome:
    """A fault that was survived."""

    seconds: float | None  # from the fault until training was beyond where it had come; None: not watched
    count: Count
    note: str


def measured(bed: Bed, reference: Run, note: str) -> Outcome:
    """The outcome of a run that was brought to its end, after I2 to I6 were checked."""
    return Outcome(bed.witness.seconds, verify(bed, reference), note)
