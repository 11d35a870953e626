"""Versions of nodes against the driver's, and nodes without the run's folder."""

import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
import transformers

from cluster.drill.two_nodes import TwoNodes
from cluster.runtime import node_versions
from cluster.runtime.node_versions import (
    NodeReport,
    nodes_without_run_folder,
    report_node,
    version_differences,
)
from tests.fakes.processes import LIMIT_S, ROOT

HERE = {
    "Python": "3.11.9",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "vllm": "0.32.0",
    "sleep_rl": "aaaa0000",
}


def test_version_differences_are_one_line_with_the_nodes_names():
    same = NodeReport(HERE)
    old = NodeReport(HERE | {"torch": "2.12.0", "sleep_rl": "bbbb1111"})
    bare = NodeReport({key: value for key, value in HERE.items() if key != "vllm"})
    assert version_differences(HERE, {"a": same, "b": same}) == ""
    assert version_differences(HERE, {"a": same, "b": old, "c": bare, "d": old}) == (
        "b, d: torch 2.12.0 (driver: 2.13.0), sleep_rl bbbb1111 (driver: aaaa0000); c: vllm "
        "missing (driver: 0.32.0)"
    )
    assert version_differences(bare.versions, {"a": same}) == "a: vllm 0.32.0 (driver: missing)"
    assert version_differences(HERE, {str(n): old for n in range(9)}).startswith(
        "0, 1, 2, 3 and 5 more: torch 2.12.0 (driver: 2.13.0)"
    )


def test_a_node_without_the_run_folder_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    shared = report_node(str(tmp_path), ["run.json"])
    other = report_node(str(tmp_path / "elsewhere"), ["run.json"])
    assert (shared.missing_files, other.missing_files) == ((), ("run.json",))
    assert shared.versions == other.versions
    assert nodes_without_run_folder({"a": shared, "b": other}) == "b"
    assert nodes_without_run_folder({"a": shared}) == ""
    assert report_node(None, []).missing_files == ()


def test_installed_versions_are_those_of_this_process():
    found = node_versions.installed_versions()
    assert found["Python"] == platform.python_version()
    assert (found["torch"], found["transformers"]) == (
        torch.__version__.partition("+")[0],
        transformers.__version__,
    )
    assert {"ray", "vllm", "deepspeed", "sleep_rl"} <= found.keys()


def test_the_source_digest_changes_with_python_files_only(tmp_path):
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "a.py").write_text("x = 1\n")
    first = node_versions._digest(tmp_path)
    (tmp_path / "actors" / "notes.txt").write_text("not a source")
    assert node_versions._digest(tmp_path) == first and len(first) == 8
    (tmp_path / "actors" / "a.py").write_text("x = 2\n")
    assert node_versions._digest(tmp_path) != first


RAY_CLIENT_PORT = 10001  # of every `ray start --head` that is given none
PREFLIGHT = """
import sys
from cluster.runtime.ray_backend import RayBackend
from cluster.runtime.resources import ResourceRequest
from cluster.runtime.watchdog import Watchdog
with RayBackend(sys.argv[1], log_dir=sys.argv[2]) as backend:
    backend.report_to(Watchdog(print))
    for workers in (1, 1, 2):
        backend.preflight([ResourceRequest("rollout", workers, cpus=1)])
"""


@pytest.mark.slow
@pytest.mark.stack
def test_preflight_warns_of_a_node_with_another_version(tmp_path):
    (tmp_path / "old" / "transformers-0.1.0.dist-info").mkdir(parents=True)
    (tmp_path / "old" / "transformers-0.1.0.dist-info" / "METADATA").write_text(
        "Name: transformers\nVersion: 0.1.0\n"
    )
    (tmp_path / "run").mkdir()
    with socket.socket() as another_head:
        with suppress(OSError):  # there is one already
            another_head.bind(("", RAY_CLIENT_PORT))
            another_head.listen()
        nodes = TwoNodes(1, 1)
    try:

        def printed():
            done = subprocess.run(
                [sys.executable, "-c", PREFLIGHT, nodes.address, str(tmp_path / "run" / "logs")],
                cwd=ROOT,
                env={**nodes.environment, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        same = printed()
        # equal requests are printed once
        assert same == [
            "requested: 1 rollout x 1 CPU = 1 CPU; available: 2 nodes with 2 CPU",
            "requested: 2 rollout x 1 CPU = 2 CPU; available: 2 nodes with 2 CPU",
        ]
        nodes.environment["PYTHONPATH"] = (
            f"{tmp_path / 'old'}{os.pathsep}{nodes.environment.get('PYTHONPATH', '')}"
        )
        nodes.join()
        first, warning, last = printed()
        assert "available: 3 nodes" in first and "available: 3 nodes" in last
        assert warning.startswith("warning: versions differ from the driver's: node ")
        assert (
            warning.endswith(f": transformers 0.1.0 (driver: {transformers.__version__})")
            and warning.count("node ") == 1
        )
    finally:
        nodes.close()
