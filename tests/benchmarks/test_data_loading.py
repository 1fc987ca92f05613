"""The loaders of the benchmark deliver the same pictures, and the benchmark runs.

Run: python -m pytest tests/benchmarks/test_data_loading.py
"""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import loaders
import pytest

from nnce_dist.data import synthetic
from nnce_dist.data.pack import pack

BENCHMARK = Path(loaders.__file__).with_name("data_loading.py")


def epoch(loader, pattern, scratch):
    """Every picture of an epoch with its label, by digest."""
    task = loaders.Task(loader, pattern, "", "", str(scratch), 300, 8, start=0, workers=0, batch=50)
    seen = Counter()
    for pixels, labels in loaders.LOADERS[loader][1](task):
        rows = zip(pixels.numpy(), labels.tolist(), strict=True)
        seen.update((hashlib.sha256(row.tobytes()).hexdigest(), label) for row, label in rows)
        if seen.total() == 300:
            return seen
    return None


@pytest.mark.slow
def test_loaders_deliver_the_same_pictures(tmp_path):
    pattern = pack(synthetic.source(range(300), 0), tmp_path / "set", 60)
    ours, theirs = (epoch(loader, pattern, tmp_path / "scratch") for loader in ("ours", "webdataset"))
    assert ours == theirs and len(ours) == 300


@pytest.mark.slow
def test_the_benchmark_prints_its_table(tmp_path):
    words = [sys.executable, str(BENCHMARK), "--samples", "800", "--repeats", "1", "--workers", "1", "--tries", "1"]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr
    rows = re.findall(r"^\| (disk|S3.*?) \| (ours|webdataset.*?) \| ([\d,.]+) \|", finished.stdout, re.M)
    loaders_of = {"disk": ["ours", "webdataset"]}
    loaders_of["S3"] = loaders_of["S3, 50 ms"] = ["ours", "webdataset", "webdataset, curl"]
    assert [row[:2] for row in rows] == [(place, loader) for place, names in loaders_of.items() for loader in names]
    assert all(float(rate.replace(",", "")) > 50 for _, _, rate in rows)
