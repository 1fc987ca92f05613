"""Whether the cluster that we are connected to has room for worker groups, and for how many."""

import os
import time

import ray
from ray.autoscaler.sdk import request_resources

from ..config.room import Nodes, fitting, per_worker
from ..config.room import refusal as refusal_by
from ..config.schema import Workers
from .environment import ClusterError


class TooLargeError(ClusterError, ValueError):
    """A worker group that no cluster like this one will ever hold: the settings are to be changed."""


def _nodes() -> Nodes:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(workers: Workers) -> int:
    """How many groups fit into the living nodes at once."""
    return fitting(workers, _nodes())


def refusal(workers: Workers) -> str:
    """What was asked for and what the living nodes have, in one line."""
    return refusal_by(workers, _nodes())


def require(workers: Workers) -> int:
    """Waits until a group fits and returns how many do; a cluster of our own does not grow and is not waited for.

    Raises `TooLargeError` naming what was asked for and what there is.
    """
    if groups := room(workers):
        return groups
    if os.environ.get("RAY_ADDRESS"):
        request_resources(bundles=[per_worker(workers)] * workers.count)  # a cluster that can grow does so
        deadline = time.monotonic() + workers.start_timeout
        try:
            while time.monotonic() < deadline and not (groups := room(workers)):
                time.sleep(1)
        finally:
            request_resources(bundles=[])  # Ray does not forget it with the driver that asked
    if not groups:
        raise TooLargeError(refusal(workers))
    return groups
