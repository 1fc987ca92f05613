"""Lets tests in every folder import what lies here: pytest puts the folder of a conftest on the import path."""

import os

# Before torch is loaded, for child processes too: a second thread makes the small tensors of the tests no faster, and
# where the cores are busy the threads of a product wait for one another, up to ten times as long as it takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
