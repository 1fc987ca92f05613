"""python -m pytest tests/integration/test_quick_start.py

What a Ray of our own is spared where trials run alone in their processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SWEEP = """
import json, os, sys
import test_on_ray, test_quick_start
from nnce_dist.on_ray.environment import session
with session(num_cpus=1, alone="nnce_dist.stages.jobs"):
    before = test_quick_start.when_idle(os.environ["NNCE_TEST_MARK"])
    (outcome,) = test_on_ray.run_trials(test_quick_start.whereabouts, [{"name": "a"}], test_on_ray.group(), sys.argv[1])
    print(json.dumps({"before": before, "trial": outcome.value}))
"""
PROPAGATED = "from nnce_dist.on_ray import sweep; print(sorted(sweep.class_cache.ENV_VARS_TO_PROPAGATE))"


def living(mark):
    """The command lines of marked processes, by their numbers."""
    return {number: processes.command_line(number).strip() for number in processes.marked(mark)}


def when_idle(mark):
    """The same once Ray has a process without work, which it starts by itself, and that has imported torch."""

    def idle():
        waiting = [number for number, line in living(mark).items() if line.startswith("ray::IDLE")]
        return any("libtorch" in Path(f"/proc/{number}/maps").read_text() for number in waiting)

    processes.wait_until(idle, 60, "a process without work that has imported torch")
    return living(mark)


def whereabouts(payload, runtime):
    """The process that a trial runs in, and what it has of the driver's settings."""
    settings = {name: os.environ.get(name) for name in ("RAY_CHDIR_TO_TRIAL_DIR", "NNCE_OF_THE_DRIVER")}
    return {"process": os.getpid(), **settings}


def test_a_trial_takes_a_process_that_is_there_already_and_no_dashboard_starts(tmp_path):
    with processes.ray_environment() as settings:
        settings["NNCE_OF_THE_DRIVER"] = "inherited"
        command = [sys.executable, "-c", SWEEP, str(tmp_path)]
        done = subprocess.run(command, env=processes.outside() | settings, capture_output=True, text=True, timeout=150)
        assert not done.returncode, done.stderr
        assert not processes.marked(settings[processes.MARK])
    found = json.loads(done.stdout.splitlines()[-1])
    before, trial = found["before"], found["trial"]
    assert str(trial["process"]) in before
    assert trial["RAY_CHDIR_TO_TRIAL_DIR"] == "0" and trial["NNCE_OF_THE_DRIVER"] == "inherited"
    assert before and not [line for line in before.values() if line.startswith("ray-dashboard-")]


def test_processes_of_a_cluster_get_the_settings_that_they_cannot_inherit_and_no_keys():
    environment = processes.outside() | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", PROPAGATED], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "RAY_CHDIR_TO_TRIAL_DIR" in done.stdout and "AWS_" not in done.stdout
