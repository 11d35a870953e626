"""Whether the workers that a run asks for find room on the nodes of a cluster. Knows nothing of
Ray.

`nodes` are the resources of each node, as Ray names them: {"CPU": 8.0, "GPU": 2.0, ...}.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.runtime.handle import ResourceRequest
from sleep_rl.contracts.errors import InputError

Nodes = Sequence[dict[str, float]]


def inventory(asks: Sequence[ResourceRequest], nodes: Nodes) -> str:
    """What is asked and what is there, in one line."""
    parts = ", ".join(f"{ask.count} {ask.name} of {_amounts(ask.cpus, ask.gpus)}" for ask in asks)
    total = _amounts(
        sum(ask.count * ask.cpus for ask in asks), sum(ask.count * ask.gpus for ask in asks)
    )
    there = _amounts(
        sum(node.get("CPU", 0.0) for node in nodes), sum(node.get("GPU", 0.0) for node in nodes)
    )
    return (
        f"asked: {parts} = {total}; there: {len(nodes)} node{'s' * (len(nodes) != 1)} with {there}"
    )


def check(asks: Sequence[ResourceRequest], nodes: Nodes) -> None:
    """Raises InputError that names the missing resource when the workers can never all run at
    once.
    """
    for kind in ("CPU", "GPU"):
        wanted = [(ask.name, ask.count, ask.cpus if kind == "CPU" else ask.gpus) for ask in asks]
        wanted = [(name, count, amount) for name, count, amount in wanted if count * amount > 0]
        total = sum(count * amount for _, count, amount in wanted)
        there, largest = (most(node.get(kind, 0.0) for node in nodes) for most in (sum, max))
        if total > there + 1e-6:
            parts = " + ".join(
                f"{name}: {count} actors x {amount:g} {kind}" for name, count, amount in wanted
            )
            raise InputError(f"{parts} asked = {total:g} {kind}, the cluster has {there:g}")
        for name, _, amount in wanted:
            if amount > largest + 1e-6:
                raise InputError(
                    f"{name}: {amount:g} {kind} per actor asked, the largest node has {largest:g}"
                )
    _pack(asks, nodes)


def bundles(asks: Sequence[ResourceRequest]) -> list[dict[str, float]]:
    """What an autoscaler is to make room for: one entry per worker that takes anything."""
    each = [
        {kind: amount for kind, amount in (("CPU", ask.cpus), ("GPU", ask.gpus)) if amount}
        for ask in asks
        for _ in range(ask.count)
    ]
    return [bundle for bundle in each if bundle]


def _pack(asks: Sequence[ResourceRequest], nodes: Nodes) -> None:
    """Raises InputError when the workers, the largest first, do not fit on the nodes, though they
    would in sum.
    """
    free = [[node.get("GPU", 0.0), node.get("CPU", 0.0)] for node in nodes]
    for ask in sorted(asks, key=lambda ask: (ask.gpus, ask.cpus), reverse=True):
        for number in range(ask.count):
            place = next(
                (f for f in free if f[0] >= ask.gpus - 1e-6 and f[1] >= ask.cpus - 1e-6), None
            )
            if place is None:
                there = ", ".join(
                    f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes
                )
                raise InputError(
                    f"{ask.name}: {ask.cpus:g} CPU and {ask.gpus:g} GPU for each of "
                    f"{ask.count} actors asked; "
                    f"actor {number + 1} finds room on no node beside the others; "
                    f"nodes: {there}"
                )
            place[0], place[1] = place[0] - ask.gpus, place[1] - ask.cpus


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
