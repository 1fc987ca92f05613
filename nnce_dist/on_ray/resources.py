"""What a worker group needs, what the cluster has, and how many groups fit."""

import os
import time
from collections import Counter

import ray
from ray.autoscaler.sdk import request_resources

from ..config.schema import Workers
from .environment import ClusterError


def per_worker(workers: Workers) -> dict[str, float]:
    """The resources of one worker, in Ray's names."""
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


def room(workers: Workers) -> int:
    """How many groups of `workers.count` fit into the living nodes at once; a worker lies on one node."""
    need = per_worker(workers)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = sum(int(min((node.get(name, 0) + 1e-9) // amount for name, amount in need.items())) for node in nodes)
    return fitting // workers.count


def require(workers: Workers) -> int:
    """Waits until a group fits and returns how many do; a cluster of our own does not grow and is not waited for.

    Raises `ClusterError` naming what was asked for and what there is.
    """
    if groups := room(workers):
        return groups
    if os.environ.get("RAY_ADDRESS"):
        request_resources(bundles=[per_worker(workers)] * workers.count)  # a cluster that can grow does so
        deadline = time.monotonic() + workers.start_timeout
        while time.monotonic() < deadline and not (groups := room(workers)):
            time.sleep(1)
        request_resources(bundles=[])
    if not groups:
        raise ClusterError(_refusal(workers))
    return groups


def _refusal(workers: Workers) -> str:
    total = Counter()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for node in nodes:
        total.update({name: node.get(name, 0) for name in ("CPU", "GPU")})
    return (
        f"workers: asked for {workers.count} x ({workers.cpus:g} CPUs, {workers.gpus:g} GPUs), the cluster has "
        f"{total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} node(s); "
        "lower workers.count, workers.cpus or workers.gpus, or add nodes"
    )
