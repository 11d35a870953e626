"""The resources that workers request, and whether a cluster can hold them. Does not import Ray.

`nodes`: the resources of each node, as Ray names them: {"CPU": 8.0, "GPU": 2.0, ...}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleep_rl.contracts.errors import InputError

Nodes = Sequence[dict[str, float]]
TOLERANCE = 1e-6  # of sums of fractions such as 0.1 CPU


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of `count` workers with the name or role `name`; `cpus`, `gpus`: per worker."""

    name: str
    count: int
    cpus: float = 0.0
    gpus: float = 0.0


def inventory(requests: Sequence[ResourceRequest], nodes: Nodes) -> str:
    """Return one line with the requested and the available resources."""
    parts = ", ".join(f"{r.count} {r.name} x {_amounts(r.cpus, r.gpus)}" for r in requests)
    requested = _amounts(
        sum(r.count * r.cpus for r in requests),
        sum(r.count * r.gpus for r in requests),
    )
    available = _amounts(
        sum(node.get("CPU", 0.0) for node in nodes),
        sum(node.get("GPU", 0.0) for node in nodes),
    )
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"requested: {parts} = {requested}; available: {count} with {available}"


def check(requests: Sequence[ResourceRequest], nodes: Nodes) -> None:
    """Raise InputError that names the missing resource if the nodes cannot run all workers at
    once.
    """
    for kind in ("CPU", "GPU"):
        _check_total(kind, requests, [node.get(kind, 0.0) for node in nodes])
    _check_packing(requests, nodes)


def bundles(requests: Sequence[ResourceRequest]) -> list[dict[str, float]]:
    """Return the resource bundles of a request to the autoscaler: one per worker that takes any."""
    out = []
    for request in requests:
        amounts = {"CPU": request.cpus, "GPU": request.gpus}
        bundle = {kind: amount for kind, amount in amounts.items() if amount}
        out += [bundle] * (request.count if bundle else 0)
    return out


def _check_total(kind: str, requests: Sequence[ResourceRequest], amounts: list[float]) -> None:
    """Raise InputError if all nodes together, or the largest one, have too little of a resource."""
    rows = [(r.name, r.count, r.cpus if kind == "CPU" else r.gpus) for r in requests]
    rows = [(name, count, amount) for name, count, amount in rows if count * amount > 0]
    total = sum(count * amount for _, count, amount in rows)
    if total > sum(amounts) + TOLERANCE:
        parts = " + ".join(
            f"{name}: {count} actors x {amount:g} {kind}" for name, count, amount in rows
        )
        raise InputError(f"{parts} = {total:g} {kind} requested, the cluster has {sum(amounts):g}")
    for name, _, amount in rows:
        if amount > max(amounts) + TOLERANCE:
            raise InputError(
                f"{name}: {amount:g} {kind} per actor requested, the largest node has "
                f"{max(amounts):g}"
            )


def _check_packing(requests: Sequence[ResourceRequest], nodes: Nodes) -> None:
    """Raise InputError if the workers do not fit on single nodes (first fit, largest first), though
    the totals suffice.
    """
    free = [[node.get("GPU", 0.0), node.get("CPU", 0.0)] for node in nodes]
    for request in sorted(requests, key=lambda r: (r.gpus, r.cpus), reverse=True):
        gpus = request.gpus - TOLERANCE
        cpus = request.cpus - TOLERANCE
        for number in range(request.count):
            node = next((node for node in free if node[0] >= gpus and node[1] >= cpus), None)
            if node is None:
                raise InputError(_does_not_fit(request, number + 1, nodes))
            node[0] -= request.gpus
            node[1] -= request.cpus


def _does_not_fit(request: ResourceRequest, number: int, nodes: Nodes) -> str:
    sizes = ", ".join(
        f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes
    )
    return (
        f"{request.name}: {request.cpus:g} CPU and {request.gpus:g} GPU for each of "
        f"{request.count} actors requested; actor {number} fits on no node beside the others; "
        f"nodes: {sizes}"
    )


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
