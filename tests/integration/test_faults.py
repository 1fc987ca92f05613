"""The quick half of the fault catalogue; `make faults` does all of it.  Run: pytest tests/integration/test_faults.py"""

import dataclasses

import pytest
from invariants import Count, Run, compare
from outcome import NotHere
from rows import ROWS
from run import injected, references


@pytest.fixture(scope="module")
def uninterrupted():
    """The cache with the data, and the run that met no fault."""
    with references() as both:
        yield both


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("row", [row for row in ROWS if row.quick], ids=lambda row: f"{row.number}-{row.title}")
def test_a_fault_is_survived_without_loss(row, uninterrupted):
    try:
        outcome = injected(row, *uninterrupted)
    except NotHere as reason:
        pytest.skip(str(reason))
    assert outcome.count == Count(0, 0)


def test_what_is_lost_repeated_or_swapped_is_counted():
    """The measure itself: a step left out, one counted twice, one with another sample in it."""
    figures = [(position, {"denoiser/loss": position / 7}) for position in range(32, 32 * 9, 32)]
    whole = Run(figures, "weights")
    assert compare(whole, whole) == Count(0, 0)
    assert compare(dataclasses.replace(whole, figures=figures[:3] + figures[4:]), whole) == Count(32, 0)
    assert compare(dataclasses.replace(whole, figures=figures[:4] + figures[3:]), whole) == Count(0, 32)
    swapped = [*figures[:3], (128, {"denoiser/loss": 128 / 7 * (1 + 2**-52)}), *figures[4:]]
    assert compare(dataclasses.replace(whole, figures=swapped), whole) == Count(32, 0)
