"""What a run asks of a cluster, what is there, and which nodes run something else than the
driver.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from cluster.drill.two_nodes import TwoNodes
from cluster.runtime import node_versions
from cluster.runtime.node_versions import Node, differences, look, unseen
from cluster.runtime.resources import ResourceRequest, bundles, check, inventory
from sleep_rl.contracts.errors import InputError

ROOT = Path(__file__).parents[2]
HERE = {
    "Python": "3.11.9",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "vllm": "0.32.0",
    "sleep_rl": "aaaa0000",
}


def test_what_is_asked_and_what_is_there_is_one_line():
    asks = [
        ResourceRequest("rollout", 8, cpus=1, gpus=1),
        ResourceRequest("learner", 4, gpus=0.5),
        ResourceRequest("reward", 1),
    ]
    assert inventory(
        asks, [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 2.0, "memory": 1e9}]
    ) == (
        "asked: 8 rollout of 1 CPU and 1 GPU, 4 learner of 0 CPU and 0.5 GPU, 1 reward of 0 CPU "
        "= 8 CPU and 10 GPU; "
        "there: 2 nodes with 32 CPU and 10 GPU"
    )
    assert (
        inventory([ResourceRequest("rollout", 1, cpus=1)], [{"CPU": 2.0}])
        == "asked: 1 rollout of 1 CPU = 1 CPU; there: 1 node with 2 CPU"
    )


@pytest.mark.parametrize(
    ("asks", "line"),
    [
        (
            [
                ResourceRequest("rollout", 8, cpus=1, gpus=1),
                ResourceRequest("learner", 4, gpus=0.5),
            ],
            "rollout: 8 actors x 1 GPU + learner: 4 actors x 0.5 GPU asked = 10 GPU, the cluster "
            "has 6",
        ),
        (
            [ResourceRequest("rollout", 8, cpus=8)],
            "rollout: 8 actors x 8 CPU asked = 64 CPU, the cluster has 32",
        ),
        (
            [ResourceRequest("rollout", 1, gpus=5)],
            "rollout: 5 GPU per actor asked, the largest node has 4",
        ),
        (
            [ResourceRequest("rollout", 2, gpus=3)],
            "rollout: 0 CPU and 3 GPU for each of 2 actors asked; actor 2 "
            "finds room on no node beside "
            "the others; nodes: 16 CPU and 4 GPU, 16 CPU and 2 GPU",
        ),
        (
            [
                ResourceRequest("rollout", 4, cpus=1, gpus=1),
                ResourceRequest("learner", 4, gpus=0.5),
            ],
            None,
        ),
    ],
)
def test_the_missing_resource_is_named(asks, line):
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}]
    if line is None:
        return check(asks, nodes)
    with pytest.raises(InputError) as error:
        check(asks, nodes)
    assert str(error.value) == line


def test_an_autoscaler_is_asked_for_one_bundle_per_worker_that_takes_anything():
    asks = [
        ResourceRequest("rollout", 2, cpus=1, gpus=1),
        ResourceRequest("learner", 1, gpus=0.5),
        ResourceRequest("reward", 3),
    ]
    assert bundles(asks) == [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"GPU": 0.5}]


def test_nodes_that_run_something_else_are_named_in_one_line():
    same, old = Node(HERE), Node(HERE | {"torch": "2.12.0", "sleep_rl": "bbbb1111"})
    bare = Node({key: value for key, value in HERE.items() if key != "vllm"})
    assert differences(HERE, {"a": same, "b": same}) == ""
    assert differences(HERE, {"a": same, "b": old, "c": bare, "d": old}) == (
        "b, d: torch 2.12.0 (driver: 2.13.0), sleep_rl bbbb1111 (driver: aaaa0000); c: vllm "
        "missing (driver: 0.32.0)"
    )
    assert differences(bare.versions, {"a": same}) == "a: vllm 0.32.0 (driver: missing)"
    assert differences(HERE, {str(n): old for n in range(9)}).startswith(
        "0, 1, 2, 3 and 5 more: torch 2.12.0 (driver: 2.13.0)"
    )


def test_a_node_that_does_not_see_the_run_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    sees, blind = look(str(tmp_path), ["run.json"]), look(str(tmp_path / "elsewhere"), ["run.json"])
    assert (sees.unseen, blind.unseen) == ((), ("run.json",)) and sees.versions == blind.versions
    assert unseen({"a": sees, "b": blind}) == "b" and unseen({"a": sees}) == ""
    assert look(None, []).unseen == ()


def test_versions_of_this_process():
    found = node_versions.installed()
    assert found["Python"] == platform.python_version()
    assert (found["torch"], found["transformers"]) == (
        torch.__version__.partition("+")[0],
        transformers.__version__,
    )
    assert {"ray", "vllm", "deepspeed", "sleep_rl"} <= found.keys()


def test_the_digest_of_the_sources_changes_with_them(tmp_path):
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "a.py").write_text("x = 1\n")
    first = node_versions._digest(tmp_path)
    (tmp_path / "actors" / "notes.txt").write_text("not a source")
    assert node_versions._digest(tmp_path) == first and len(first) == 8
    (tmp_path / "actors" / "a.py").write_text("x = 2\n")
    assert node_versions._digest(tmp_path) != first


PREFLIGHT = """
import sys
from cluster.runtime.ray_backend import RayBackend
from cluster.runtime.resources import ResourceRequest
from cluster.runtime.watchdog import Watch
with RayBackend(sys.argv[1], log_dir=sys.argv[2]) as backend:
    backend.watch = Watch(print)
    for workers in (1, 1, 2):
        backend.preflight([ResourceRequest("rollout", workers, cpus=1)])
"""


@pytest.mark.slow
@pytest.mark.stack
def test_a_real_node_with_another_version_is_named_before_workers_start(tmp_path):
    (tmp_path / "old" / "transformers-0.1.0.dist-info").mkdir(parents=True)
    (tmp_path / "old" / "transformers-0.1.0.dist-info" / "METADATA").write_text(
        "Name: transformers\nVersion: 0.1.0\n"
    )
    (tmp_path / "run").mkdir()
    nodes = TwoNodes(1, 1)
    try:

        def told():
            done = subprocess.run(
                [sys.executable, "-c", PREFLIGHT, nodes.address, str(tmp_path / "run" / "logs")],
                cwd=ROOT,
                env={**nodes.environment, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        same = told()
        # once for two equal asks
        assert same == [
            "asked: 1 rollout of 1 CPU = 1 CPU; there: 2 nodes with 2 CPU",
            "asked: 2 rollout of 1 CPU = 2 CPU; there: 2 nodes with 2 CPU",
        ]
        nodes.environment["PYTHONPATH"] = (
            f"{tmp_path / 'old'}{os.pathsep}{nodes.environment.get('PYTHONPATH', '')}"
        )
        nodes.join()
        first, warning, last = told()
        assert "there: 3 nodes" in first and "there: 3 nodes" in last
        assert warning.startswith("warning: not every node runs what the driver runs: node ")
        assert (
            warning.endswith(f": transformers 0.1.0 (driver: {transformers.__version__})")
            and warning.count("node ") == 2
        )
    finally:
        nodes.close()
