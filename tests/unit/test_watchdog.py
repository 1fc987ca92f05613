"""The watchdog ends a process that stands still, whatever else goes wrong."""

import signal
import subprocess
import sys

import pytest

from nnce_dist.on_ray.watchdog import Watchdog, newly_stalled

STUCK = """
import sys, time
from nnce_dist.on_ray.watchdog import Watchdog
Watchdog(float(sys.argv[2]), sys.argv[1]).alive()
print("watched", flush=True)
time.sleep(100)
"""


def stuck(run_dir, timeout):
    """A process that has been alive once, in a run's folder."""
    command = [sys.executable, "-c", STUCK, run_dir, timeout]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("takes_stacks", [True, False])
def test_a_process_without_progress_is_ended(tmp_path, takes_stacks):
    """Also where its stacks cannot be written: the run's folder is a file here."""
    run_dir = tmp_path / "run"
    run_dir.mkdir() if takes_stacks else run_dir.touch()
    with stuck(run_dir, "0.5") as process:
        assert process.wait(timeout=60) == -signal.SIGKILL
    if takes_stacks:
        (stacks,) = newly_stalled(run_dir)
        assert 'File "<string>", line 6' in stacks.read_text()
        assert newly_stalled(run_dir) == []


@pytest.mark.slow
def test_a_watchdog_that_is_done_leaves_others_theirs(tmp_path):
    """Two processes share a run's folder; the one that ends first takes nothing from the other."""
    done = Watchdog(60, tmp_path)
    done.alive()
    with stuck(tmp_path, "1") as process:
        assert process.stdout.readline() == b"watched\n"
        done.close()
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert len(newly_stalled(tmp_path)) == 1
