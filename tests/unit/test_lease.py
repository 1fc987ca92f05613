"""python -m pytest tests/unit/test_lease.py"""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from nnce_dist.stages.lease import RunGuard, lease
from nnce_dist.stages.mirror import OWNER
from nnce_dist.stages.owner import Owner
from nnce_dist.training.checkpoint import FencedError

HOLD = """
import sys, time
from pathlib import Path
from nnce_dist.stages.lease import lease
with lease(Path(sys.argv[1]), None, print) as epoch:
    print(epoch, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "1"
    yield process
    process.kill()
    process.wait(timeout=10)
    process.stdout.close()


def test_a_second_job_is_refused_and_told_who_the_first_is_until_that_is_killed(tmp_path, holder):
    with pytest.raises(ValueError) as caught, lease(tmp_path, None, print):
        pass
    line = str(caught.value)
    who = f"{tmp_path}: process {holder.pid} on {re.escape(socket.gethostname())}, since "
    assert re.match(who + r"\d{4}-\d\d-\d\dT[\d:+]+, writes", line) and "run.name" in line and "\n" not in line
    holder.send_signal(signal.SIGSTOP)  # alive, though it does nothing: still the owner
    with pytest.raises(ValueError, match=f"process {holder.pid}"), lease(tmp_path, None, print):
        pass
    holder.kill()
    holder.wait(timeout=10)
    said = []
    with lease(tmp_path, None, said.append) as epoch:
        assert epoch == 2
    (line,) = said
    assert f"taking over {tmp_path} from process {holder.pid}" in line


def test_a_job_that_ended_leaves_nothing_to_take_over(tmp_path):
    said = []
    for expected in (1, 2, 3):
        with lease(tmp_path, None, said.append) as epoch:
            assert epoch == expected
    with pytest.raises(KeyError), lease(tmp_path, None, said.append):
        raise KeyError
    with lease(tmp_path, None, said.append) as epoch:
        assert epoch == 5
    assert not said and [path.name for path in tmp_path.iterdir()] == [OWNER]


def test_what_a_former_owner_left_running_may_not_commit(tmp_path):
    with lease(tmp_path, None, print) as epoch:
        former = RunGuard(tmp_path, epoch)
        former.check()
    former.check()  # its owner ended, and nobody else came
    with lease(tmp_path, None, print), pytest.raises(FencedError, match=f"taken over by process {os.getpid()}"):
        former.check()
    RunGuard(tmp_path, 0).check()  # a job that nobody started under a lease


def test_an_ended_process_is_told_from_a_living_one_that_has_its_number():
    me = Owner.of_this_process(1)
    assert not me.has_ended()
    child = subprocess.Popen(["sleep", "100"])
    other = Owner(**{**vars(me), "pid": child.pid})  # its number belongs to somebody else now
    child.kill()
    assert other.has_ended()
    child.wait(timeout=10)
    assert other.has_ended()
    assert not Owner(**{**vars(other), "machine": "elsewhere"}).has_ended()  # nobody can tell from here
    assert Owner.decode(me.encode()) == me and Owner.decode(b"{") is None and len(me.encode()) == 1024
