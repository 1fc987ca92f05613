"""A run goes on in mid-epoch of a set of ImageNet's size within two seconds.

Run: python -m pytest tests/benchmarks/test_resume_time.py
"""

import pytest
import resume

from nnce_dist.data.files import FileStore
from nnce_dist.data.set_index import store_set
from nnce_dist.data.store import expand


@pytest.mark.slow
def test_the_first_batch_in_mid_epoch_of_a_million_samples_takes_less_than_two_cpu_seconds(tmp_path):
    """CPU-seconds, as the tests may share the machine; without the index of the set it takes three times as long."""
    pattern = f"{tmp_path}/set/{resume.make_set(tmp_path / 'set', 1282, 1000)}"
    store_set(expand(pattern), FileStore())
    for position in (640_000, 1_281_999):
        took = resume.measured(pattern, "", str(tmp_path / "cache"), position, 1000, False)
        assert took["CPU-seconds"] < 2
