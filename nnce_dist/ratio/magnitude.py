"""The noise magnitude M over training: pure functions of the fraction of training that is done.

M spans decades, so ramps are even in ln M.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence


def geometric_ramp(start: float, end: float, fraction: float) -> float:
    """From `start` at fraction 0 to `end` at 1, by equal factors: start^(1-u) end^u. Both are finite."""
    return start ** (1 - fraction) * end**fraction


def cosine_ramp(start: float, end: float, fraction: float) -> float:
    """As `geometric_ramp`, but slow at both ends: u = (1 - cos(pi fraction)) / 2."""
    return geometric_ramp(start, end, (1 - math.cos(math.pi * fraction)) / 2)


def piecewise(fractions: Sequence[float], magnitudes: Sequence[float], fraction: float) -> float:
    """magnitudes[i] from fractions[i-1] (0 for the first) up to, not including, fractions[i]: one more than fractions.

    `fractions` ascend.
    """
    return magnitudes[bisect_right(fractions, fraction)]
