"""Lets tests in every folder import what lies here: pytest puts the folder of a conftest on the import path."""

import os

import pytest

# Before torch is loaded, for child processes too: a second thread makes the small tensors of the tests no faster, and
# where the cores are busy the threads of a product wait for one another, up to ten times as long as it takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that a Ceph gateway answers: it takes a quarter of a minute to start, and two at once may take minutes.
OF_RADOSGW = {"test_radosgw.py", "test_s3.py", "test_s3_sets.py", "test_store.py"}


def pytest_collection_modifyitems(items):
    """Where several processes run tests (--dist loadgroup), those of a file stay together, and those of the gateway."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("radosgw" if item.path.name in OF_RADOSGW else item.path.name))
