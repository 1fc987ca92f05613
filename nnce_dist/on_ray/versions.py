"""What must be the same in a run's driver and on every node of its cluster."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..training.errors import one_line

PACKAGE = Path(__file__).parents[1]
_TIMEOUT = 120.0  # seconds for a process to start on every node


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that carry payloads and tensors; of this project a digest of its code."""
    code = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    libraries = {name: version(name) for name in ("ray", "torch")}
    return {"python": platform.python_version(), **libraries, PACKAGE.name: f"code {code.hexdigest()[:12]}"}


def differences() -> str | None:
    """One line about the first node that has something else than this process; None when all have the same."""
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    ask = ray.remote(num_cpus=0, max_retries=0)(versions)
    where = {address: NodeAffinitySchedulingStrategy(node, soft=False) for address, node in nodes.items()}
    answers = {address: ask.options(scheduling_strategy=strategy).remote() for address, strategy in where.items()}
    here = versions()
    for node, answer in answers.items():
        try:
            there = ray.get(answer, timeout=_TIMEOUT)
        except ray.exceptions.TaskUnschedulableError:
            continue  # it has gone, which Ray may notice late
        except (ray.exceptions.RayError, ImportError, AttributeError) as error:
            return f"node {node} cannot load this project's code ({one_line(error)}); install the same on every node"
        if different := [name for name in here if there.get(name) != here[name]]:
            other = ", ".join(f"{name} {there.get(name)} (here: {here[name]})" for name in different)
            return f"node {node} has {other}; install the same on every node"
    return None
