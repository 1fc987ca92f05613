"""Marks for parameters."""

import pytest


def slow(*values):
    """A case that only the whole test run takes."""
    return pytest.param(*values, marks=pytest.mark.slow)
