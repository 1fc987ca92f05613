"""Rows about workers and nodes that are lost, stand still or are slow, and about a sweep with a bad trial."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import processes
from bed import INTERVAL, Bed
from invariants import Run, compare, no_secret
from killed import ray_workers
from outcome import Outcome, measured

ELASTIC = "workers.min=1"


@contextmanager
def cluster_of(bed: Bed) -> Iterator[processes.Cluster]:
    """A cluster to which the bed's drivers connect: a head with one CPU."""
    with closing(processes.Cluster(bed.environment)) as cluster:
        cluster.start_head(num_cpus=1)
        bed.environment |= cluster.driver
        yield cluster


def node_lost(bed: Bed, reference: Run) -> Outcome:
    """One of two nodes is gone: one worker goes on with the same global batch; when a node comes, two do."""
    with cluster_of(bed) as cluster:
        node = cluster.add_node(num_cpus=1)
        attempt = bed.start(ELASTIC, workers=2)
        attempt.reach(2 * INTERVAL)
        bed.fault()
        cluster.kill(node)
        attempt.reach(4 * INTERVAL)
        cluster.add_node(num_cpus=1)
        attempt.trained(bed.job)
    return measured(bed, reference, "2 workers, then 1, then as many as there were nodes")


def node_drained(bed: Bed, reference: Run) -> Outcome:
    """The node is told that it will be taken away: the run saves before, and no step is done again."""
    with cluster_of(bed) as cluster:
        cluster.add_node(num_cpus=1)
        attempt = bed.start(ELASTIC, "workers.restarts=0", workers=2)
        attempt.reach(2 * INTERVAL)
        bed.fault()
        cluster.drain(seconds=60)
        attempt.trained(bed.job)
    assert bed.witness.resumed_at == [], "I2: steps were done again"
    return measured(bed, reference, "saved before the node went; no restart was counted, no step done again")


def stands_still(bed: Bed, reference: Run) -> Outcome:
    """One of two workers is stopped by SIGSTOP: its stacks are written down, it is ended, the group starts again."""
    attempt = bed.start("workers.stall_timeout=15", workers=2)
    attempt.reach(3 * INTERVAL)
    bed.fault()
    stopped = ray_workers(bed)[0]
    os.kill(stopped, signal.SIGSTOP)
    attempt.trained(bed.job)
    stacks = list((bed.job.parent / "stalled").glob("*"))
    assert any("File" in path.read_text() for path in stacks), f"no stacks: {stacks}"
    return measured(bed, reference, f"ended after 15 s without progress; stacks of {len(stacks)} process(es) kept")


def straggles(bed: Bed, reference: Run) -> Outcome:
    """One of two workers gets a fifth of the time; a warning names it, and nothing else changes."""
    attempt = bed.start(workers=2)
    attempt.reach(2 * INTERVAL)
    bed.fault()
    worker = random.choice(ray_workers(bed))
    rank = rank_of(bed, worker)
    with slowed(worker):
        attempt.trained(bed.job)
    said = attempt.said + attempt.printed
    named = re.findall(r"rank \d+ is slow: [^;]*", said)
    assert len(named) == 1 and named[0].startswith(f"rank {rank} "), f"rank {rank} was slow; told of {named}: {said}"
    return measured(bed, reference, named[0])


def rank_of(bed: Bed, worker: int) -> int:
    """The rank that a process has by Ray's own log."""
    logs = bed.ray.glob("ray/session_latest/logs/train/ray-train-sys-controller-*.log")
    return int(re.search(rf"pid={worker}\) world_rank=(\d+)", "".join(map(Path.read_text, logs)))[1])


@contextmanager
def slowed(pid: int):
    """The process, while it lives, is stopped for 0.4 s out of every 0.5 s."""
    done = threading.Event()

    def stop_and_go():
        with suppress(ProcessLookupError):
            while not done.is_set():
                os.kill(pid, signal.SIGSTOP)
                done.wait(0.4)
                os.kill(pid, signal.SIGCONT)
                done.wait(0.1)

    thread = threading.Thread(target=stop_and_go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def version_mix(bed: Bed, reference: Run) -> Outcome:
    """A node has another torch than the driver: refused with both versions; with that node away the run goes on."""
    with cluster_of(bed) as cluster:
        odd = cluster.add_node(num_cpus=1, NNCE_FAULT="version:torch:2.0.1")
        line = bed.start(workers=1).refused("torch 2.0.1", "install the same", code=1)
        cluster.kill(odd)
        bed.fault()
        bed.start(workers=1).trained(bed.job)
    return measured(bed, reference, line)


def too_few_resources(bed: Bed, reference: Run) -> Outcome:
    """More is asked for than this machine or a cluster has: refused with both numbers, nothing pends."""
    words = "asked for 1 x (1 CPUs, 8 GPUs)", "0 GPUs"
    bed.start("workers.gpus=8", workers=1).refused(*words)
    with cluster_of(bed):
        start = time.monotonic()
        line = bed.start("workers.gpus=8", "workers.start_timeout=5", workers=1).refused(*words)
        seconds = time.monotonic() - start
        bed.fault()
        bed.start(workers=1).trained(bed.job)
    return measured(bed, reference, f"after {seconds:.0f} s with workers.start_timeout=5: {line}")


def trial_fails(bed: Bed, reference: Run) -> Outcome:
    """One trial of a sweep cannot write; the other is finished, the run names the bad one and ends with 1."""
    sweep = ["run.stages=[ten_step]", "teacher.weights=shipped", "sweep.nwj=false", "sweep.held=false"]
    sweep += ["sweep.zero_energy=false", "ten_step.training.samples=64"]
    sweep += ["ten_step.training.batch=16", "ten_step.training.log_every=16"]
    both = [*sweep, "sweep.noise_magnitudes=[1,100]"]
    alone = bed.runs / "alone" / "ten_step" / "m1"
    bed.start(*sweep, "sweep.noise_magnitudes=[1]", "run.name=alone").trained(alone)
    folder = bed.job.parent / "ten_step"
    folder.mkdir(parents=True)
    (folder / "m1").write_text("a file where the trial's folder should be")
    line = bed.start(*both, workers=1).refused("m1", code=1)
    good = (folder / "m100" / "weights.safetensors").read_bytes()
    (folder / "m1").unlink()
    bed.start(*both).finish()
    assert (folder / "m100" / "weights.safetensors").read_bytes() == good
    repaired, expected = Run.of(folder / "m1"), Run.of(alone)
    assert repaired.weights == expected.weights, "I3: other final weights"
    no_secret(bed.homes)
    return Outcome(None, compare(repaired, expected), line)
