"""`sleep-rl submit` on a real Ray cluster of two nodes on this machine, with token
authentication.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.drill import faults
from cluster.drill.scenarios import reached
from cluster.drill.two_nodes import TwoNodes
from sleep_rl.journal.journal import read
from tests.fakes.processes import as_at_a_terminal

ROOT = Path(__file__).parents[3]
LIFE = (
    "configs/debug.yaml",
    "run.cache=cache",
    "task.days=4",
    "sleep.steps=6",
    "rollouts.workers=2",
    "learners.cpus=1",
    "cluster.start_timeout_s=1200",
)  # 3 CPUs: workers on both nodes
LIMIT_S = 1500

pytestmark = [pytest.mark.slow, pytest.mark.stack]


@pytest.fixture(scope="module")
def nodes():
    nodes = TwoNodes(2, 1, jobs=True)
    yield nodes
    nodes.close()


class Client:
    """`sleep-rl submit` in a process of its own, with the cluster's token."""

    def __init__(self, nodes, *arguments, **environment):
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("VLLM_", "OMP_", "TORCHDYNAMO", "RAY_"))
        }
        token = {"RAY_AUTH_TOKEN": nodes.environment["RAY_AUTH_TOKEN"]}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sleep_rl",
                "submit",
                *map(str, arguments),
                "--address",
                nodes.jobs,
            ],
            cwd=ROOT,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**kept, **token, **environment},
            preexec_fn=as_at_a_terminal,
        )
        self.printed = []

    def until(self, pattern):
        """Read lines until one matches; return the match."""
        for line in self.process.stdout:
            self.printed.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no line matches {pattern}: {''.join(self.printed)}")

    def end(self):
        """(exit code, everything printed)"""
        rest = self.process.communicate(timeout=LIMIT_S)[0]
        return self.process.returncode, "".join(self.printed) + rest


def started(nodes, tmp_path, *keys):
    """(client, job, run folder) of a run that was just submitted."""
    client = Client(nodes, *LIFE, f"run.dir={tmp_path}", *keys)
    found = client.until(r"^(debug-\d{4}-\d{6}): submitted to .*: (/\S+)$")
    return client, found[1], Path(found[2])


def wait_for(folder, phase, night, client):
    deadline = time.monotonic() + LIMIT_S
    journal = folder / "metrics.jsonl"
    while not (journal.is_file() and reached(read(journal), phase, night)):
        assert client.process.poll() is None and time.monotonic() < deadline, client.end()
        time.sleep(0.05)


def memories(folder):
    found = {
        path.parent.name: path.read_bytes()
        for path in sorted(folder.glob("memory/*/memory.safetensors"))
    }
    assert list(found) == [f"night-{night}" for night in range(1, 5)]
    return found


@pytest.fixture(scope="module")
def undisturbed(nodes, tmp_path_factory):
    """(run folder, what its client printed)"""
    client, _, folder = started(nodes, tmp_path_factory.mktemp("whole"))
    code, printed = client.end()
    assert code == 0, printed
    return folder, printed


def test_a_wrong_token_and_an_unknown_job_are_refused(nodes):
    code, printed = Client(nodes, "--follow", "none", RAY_AUTH_TOKEN="wrong").end()
    assert (
        code == 2 and "rejects the token (403 Forbidden: Invalid authentication token)" in printed
    )
    code, printed = Client(nodes, "--stop", "none", RAY_AUTH_MODE="disabled").end()
    assert (
        code == 2
        and "rejects the token (401 Unauthorized: Missing authentication token)" in printed
    )
    assert Client(nodes, "--follow", "none").end() == (
        2,
        f"sleep-rl: {nodes.jobs}: Job none does not exist\n",
    )


def test_a_run_is_submitted_and_followed_to_its_end(nodes, undisturbed):
    folder, printed = undisturbed
    assert (
        "available: 2 nodes with 3 CPU" in printed
        and f"{folder}/report.html" in printed
        and (folder / "report.html").is_file()
    )
    assert nodes.environment["RAY_AUTH_TOKEN"] not in printed
    records = read(folder / "metrics.jsonl")
    assert records[-1]["status"] == "ok" and re.fullmatch("[0-9a-f]{40}", records[0]["commit"])
    code, again = Client(nodes, "--follow", folder.name).end()
    assert code == 0 and "night 4: seeding: done" in again
    assert Client(nodes, "--stop", folder.name).end() == (
        0,
        f"{folder.name}: has ended already (SUCCEEDED)\n",
    )


def test_a_run_that_fails_on_the_cluster_returns_its_exit_code(nodes, tmp_path):
    client, _, _ = started(nodes, tmp_path, "rollouts.workers=9")
    code, printed = client.end()
    assert (
        code == 2
        and "rollout: 9 actors x 1 CPU + learner: 1 actors x 1 CPU = 10 CPU requested, the "
        "cluster has 3"
        in printed
    )
    assert re.search(
        r"sleep-rl: debug-\S+: failed with exit code 2; see the end of its log",
        printed,
    )


def test_a_run_recovers_from_a_killed_node_with_the_same_memory(nodes, undisturbed, tmp_path):
    client, _, folder = started(nodes, tmp_path, "cluster.restarts=8")
    wait_for(folder, "seeding", 1, client)
    nodes.cut(faults.kill)
    deadline = time.monotonic() + LIMIT_S
    while not any(record["kind"] == "restarted" for record in read(folder / "metrics.jsonl")):
        assert client.process.poll() is None and time.monotonic() < deadline, client.end()
        time.sleep(0.2)
    waiting = client.until(r"(waited .* for 1 of 1 calls|waiting up to .* for a node: )")
    nodes.join()
    code, printed = client.end()
    print(
        waiting.string,
        [
            (r["worker"], r["reason"])
            for r in read(folder / "metrics.jsonl")
            if r["kind"] == "restarted"
        ],
    )
    assert code == 0, printed
    assert memories(folder) == memories(undisturbed[0])


def test_a_stopped_and_resumed_job_ends_with_the_same_memory(nodes, undisturbed, tmp_path):
    client, job, folder = started(nodes, tmp_path)
    wait_for(folder, "seeding", 2, client)
    client.process.send_signal(signal.SIGHUP)  # the terminal is lost
    code, printed = client.end()
    assert code == 130 and f"{job}: keeps running on the cluster" in printed
    code, printed = Client(nodes, "--stop", job).end()
    assert (
        code == 0
        and f"{job}: stopped; sleep-rl submit --resume {folder} --address {nodes.jobs} resumes"
        in printed
    )
    last = read(folder / "metrics.jsonl")[-1]
    assert (last["kind"], last["status"], last["reason"]) == ("done", "failed", "ended by SIGTERM")
    assert (folder / "report.html").is_file()
    code, printed = Client(nodes, "--follow", job).end()
    assert code == 1 and f"sleep-rl: {job}: was stopped" in printed
    code, printed = Client(nodes, "--resume", folder).end()
    assert code == 0 and f"{folder}: resumes after stage" in printed, printed
    assert memories(folder) == memories(undisturbed[0])
