"""What a worker group needs, and how many groups fit into nodes; does not import Ray, so it can be asked before Ray."""

from collections import Counter
from collections.abc import Mapping, Sequence

from .schema import Workers

Nodes = Sequence[Mapping[str, float]]  # resources of each, in Ray's names


def per_worker(workers: Workers) -> dict[str, float]:
    """The resources of one worker, in Ray's names."""
    return {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})


def fitting(workers: Workers, nodes: Nodes) -> int:
    """How many groups fit at once; one that may be smaller is squeezed in where none else is."""
    need = per_worker(workers)
    places = sum(int(min((node.get(name, 0) + 1e-9) // amount for name, amount in need.items())) for node in nodes)
    return places // workers.count or int(0 < workers.min <= places)


def refusal(workers: Workers, nodes: Nodes) -> str:
    """What was asked for and what there is, in one line."""
    total = Counter()
    for node in nodes:
        total.update({name: node.get(name, 0) for name in ("CPU", "GPU")})
    each = f"({workers.cpus:g} CPUs, {workers.gpus:g} GPUs)"
    found = f"{_amounts(total)} on {len(nodes)} node(s)"
    if len(nodes) > 1:
        found += f", the largest with {_amounts(max(nodes, key=lambda node: _size(node, workers)))}"
    return (
        f"workers: asked for {workers.min or workers.count} x {each}, the cluster has {found}; "
        "lower workers.count, workers.cpus or workers.gpus, or add nodes"
    )


def _size(node: Mapping[str, float], workers: Workers) -> tuple[float, float]:
    """What workers need most comes first."""
    cpus, gpus = node.get("CPU", 0), node.get("GPU", 0)
    return (gpus, cpus) if workers.gpus else (cpus, gpus)


def _amounts(node: Mapping[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"
