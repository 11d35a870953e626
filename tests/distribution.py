"""Which tests share a process, and which start first, where pytest-xdist runs them in several."""

from __future__ import annotations

TOGETHER = {
    "tests/actors/test_rollout.py": "engines",
    "tests/actors/test_vllm_model.py": "engines",
    "tests/actors/test_weight_states.py": "engines",
    "tests/learners/test_dream_state.py": "engines",
    "tests/cluster/test_critics.py": "ray",
    "tests/cluster/test_scale.py": "ray",
    "tests/cluster/test_weights.py": "ray",
    "tests/cluster/runtime/test_pool.py": "ray",
    "tests/cluster/runtime/test_ray_backend.py": "ray",
    "tests/cluster/runtime/test_role_pools.py": "ray",
    "tests/learners/test_ranks.py": "ray",
    "tests/system/test_safety.py": "ray",
    "tests/test_architecture.py": "sources",
    "tests/test_dependencies.py": "sources",
    "tests/test_docs.py": "sources",
}
"""File -> its unit. A unit runs in one process: its files use the same fixtures of the session, or
the same syntax trees (tests/fakes/sources.py), which take seconds to make. Every other file is a
unit of its own.
"""
FIRST = (
    "tests/system/test_life.py",
    "tests/actors/test_rollout.py",
)
"""Files in the order in which they start; the other ones follow. The longest are first, since the
session ends when its last unit does.
"""


def unit(node_id: str) -> str:
    """Return the unit of a test."""
    file = node_id.partition("::")[0]
    return TOGETHER.get(file, file)


def in_order(items: list) -> list:
    """Return pytest's items with the longest units first; each unit keeps its order."""
    ranks = {unit(file): rank for rank, file in reversed([*enumerate(FIRST)])}
    return sorted(items, key=lambda item: ranks.get(unit(item.nodeid), len(FIRST)))


def scheduler(config, log):
    """Return xdist's `--dist loadfile` with the units of this file."""
    from xdist.scheduler import LoadFileScheduling

    class Units(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    return Units(config, log)
