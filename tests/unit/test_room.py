"""python -m pytest tests/unit/test_room.py"""

import errno
import os
from contextlib import ExitStack, nullcontext

import pytest

from nnce_dist.cli import _guarded, _guarded_pipeline
from nnce_dist.config.room import fitting, refusal
from nnce_dist.config.schema import Config, Workers
from nnce_dist.stages import preflight
from nnce_dist.stages.launch import RayLauncher

NODES = [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}, {"CPU": 16}]


@pytest.mark.parametrize(
    ("workers", "groups"),
    [
        (Workers(cpus=2), 16),
        (Workers(cpus=1, gpus=1), 2),
        (Workers(cpus=1, gpus=0.25), 8),
        (Workers(count=2, cpus=1, gpus=1), 1),  # a group may lie on two nodes
        (Workers(count=4, min=2, cpus=1, gpus=1), 1),  # and be smaller
        (Workers(cpus=1, gpus=2), 0),  # a worker may not
        (Workers(cpus=9, gpus=1), 0),
        (Workers(count=4, cpus=16), 0),
    ],
)
def test_a_worker_needs_a_node_and_a_group_the_cluster(workers, groups):
    assert fitting(workers, NODES) == groups


def test_a_refusal_says_what_was_asked_for_and_what_there_is():
    line = refusal(Workers(count=4, cpus=16), NODES)
    assert "asked for 4 x (16 CPUs, 0 GPUs), the cluster has 32 CPUs and 2 GPUs on 3 node(s)" in line
    assert "on 3 node(s), the largest with 16 CPUs and 0 GPUs; lower" in line
    assert "the largest with 8 CPUs and 1 GPUs; lower" in refusal(Workers(cpus=1, gpus=2), NODES)
    assert "on 1 node(s); lower" in refusal(Workers(cpus=64), NODES[:1])


def test_workers_larger_than_this_machine_are_refused_before_ray_starts(tmp_path, monkeypatch):
    config = Config(workers=Workers(cpus=os.cpu_count() + 1))
    config.run.dir, config.run.stages = str(tmp_path), ["density_ratio"]
    with pytest.raises(ValueError, match=rf"asked for 1 x \({os.cpu_count() + 1} CPUs, 0 GPUs\)"):
        preflight.check(config)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # what a cluster has is known later
    preflight.check(config)


@pytest.mark.slow  # Ray is imported, though not started
def test_workers_larger_than_a_cluster_are_bad_input_too(tmp_path, monkeypatch):
    from nnce_dist.on_ray import environment, sweep
    from nnce_dist.on_ray.resources import TooLargeError

    def refuse(*_):
        raise TooLargeError("workers: asked for 1 x (64 CPUs, 0 GPUs)")

    monkeypatch.setattr(environment, "session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(sweep, "run_feed", refuse)
    jobs = RayLauncher(Config(), tmp_path, 0, ExitStack())
    with pytest.raises(TooLargeError) as found:
        jobs.run([{"stage": "teacher", "name": "teacher", "root": str(tmp_path)}])
    assert _guarded_pipeline(lambda: jobs.run([{"stage": "a", "name": "a", "root": str(tmp_path)}])) == 2
    assert "asked for 1 x (64 CPUs" in str(found.value)


def test_a_full_disk_is_no_bad_input_and_says_how_to_go_on(capsys):
    def fill():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert _guarded(fill) == 1
    assert "No space left on device; make room and run the same command again" in capsys.readouterr().err
