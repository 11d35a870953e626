"""cluster/deploy/slurm.sh and live.sh, run with fake srun, scontrol, getent, ray and sleep-rl,
which record their arguments.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sleep_rl.config.loader import load
from sleep_rl.plan.plan import plan
from tests.fakes.command_lines import check_command
from tests.fakes.processes import LIMIT_S, until

pytestmark = pytest.mark.stack  # real processes with deadlines

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-that-must-not-be-seen"
FAKE = r"""
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
name, words, here = Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["RECORD"])
NAMES = "RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_ADDRESS HF_HOME".split()
seen = {k: os.environ.get(k) for k in NAMES}

def note(**more):
    with open(here / "calls.jsonl", "a") as file:
        call = {"name": name, "words": words, "env": seen, "cwd": os.getcwd(), **more}
        file.write(json.dumps(call) + "\n")

def until_ended(code=143):
    signal.signal(signal.SIGTERM, lambda *_: (note(ended=True), sys.exit(code)))
    if name == "sleep-rl":
        (here / "alive").touch()
    parent = os.getppid()
    while os.getppid() == parent:  # nothing outlives a test
        time.sleep(0.05)

note()
if name == "srun":  # runs the rest as it would on the node, and hands a signal on
    child = None
    signal.signal(signal.SIGTERM, lambda *_: child and child.send_signal(signal.SIGTERM))
    child = subprocess.Popen(words[next(i for i, w in enumerate(words) if not w.startswith("--")):])
    sys.exit(child.wait())
if name == "scontrol":
    if words[0] == "show":
        sys.stdout.writelines(f"{node}\n" for node in os.environ["NODES"].split())
    sys.exit(0)
if name == "getent":
    print(os.environ.get("LEADS_TO", "127.0.1.1"), "STREAM")
    sys.exit(0)
if name == "ray":
    if "--head" in words:
        if os.environ.get("HEAD") == "dies":
            sys.exit(1)
        if os.environ.get("HEAD") != "late":
            port = next(w for w in words if w.startswith("--port="))
            server = socket.create_server(("127.0.0.1", int(port.partition("=")[2])))
    until_ended()
deadline = time.monotonic() + 3600  # a run waits for its nodes
while (here / "calls.jsonl").read_text().count('"name": "ray"') < len(os.environ["NODES"].split()):
    time.sleep(0.05)
    assert time.monotonic() < deadline
if words[0] == "run":  # sleep-rl begins its folder, as the real one does
    given = dict(w.split("=", 1) for w in words if "=" in w)
    folder = Path(given["run.dir"], given["run.name"])
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
if os.environ.get("LIFE", "").startswith("long"):
    until_ended(0 if os.environ["LIFE"] == "long enough" else 143)
(here / "alive").touch()
sys.exit(int(os.environ.get("LIFE", "0")))
"""


@pytest.fixture
def job(tmp_path):
    """Return a function that starts the script in a copy of its files, as Slurm does; its
    attributes give access to the recorded calls.
    """
    repository = tmp_path / "repository"
    bin_ = tmp_path / "venv" / "bin"
    (repository / "cluster" / "deploy").mkdir(parents=True)
    bin_.mkdir(parents=True)
    for name in ("slurm.sh", "live.sh"):
        shutil.copy(ROOT / "cluster" / "deploy" / name, repository / "cluster" / "deploy")
    for name in ("srun", "scontrol", "getent", "ray", "sleep-rl"):
        (bin_ / name).write_text(f"#!{sys.executable}\n{FAKE}")
        (bin_ / name).chmod(0o755)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    started = []

    def start(*words, nodes="n1 n2 n3", **env):
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "RECORD": str(tmp_path),
            "NODES": nodes,
            "SLURM_JOB_ID": str(start.number),
            "SLURM_SUBMIT_DIR": str(repository),
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_GPUS_PER_NODE": "h100:8",
            "SLEEP_RL_VENV": str(tmp_path / "venv"),
            "HEAD_IP": "127.0.0.1",
            "SLEEP_RL_SHARED": str(tmp_path / "shared"),
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_AUTH_TOKEN": TOKEN,
        }
        given = {key: value for key, value in {**environment, **env}.items() if value is not None}
        script = subprocess.Popen(
            [repository / "cluster" / "deploy" / "slurm.sh", *words],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=given,
        )
        started.append(script)
        return script

    def calls(name):
        lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
        return [line for line in lines if line["name"] == name and "ended" not in line]

    start.calls = calls
    start.folder = tmp_path
    start.token = token
    start.number = next(n for n in range(4242, 9999) if free(20000 + n))
    yield start
    for script in started:
        script.kill()


def free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def ended(script):
    _, errors = script.communicate(timeout=LIMIT_S)
    return script.returncode, errors.strip()


def until_alive(job, script):
    """Wait until the fake run is running."""
    until((job.folder / "alive").exists, script)
    (job.folder / "alive").unlink()


def test_the_script_starts_a_head_and_nodes_runs_and_ends_them(job):
    assert ended(job("configs/gpu64_qwen3_8b.yaml", "first", "sleep.steps=3")) == (0, "")
    port = 20000 + job.number
    (run,) = job.calls("sleep-rl")
    assert run["cwd"] == str(job.folder / "repository")  # so that relative config paths work
    assert run["words"] == [
        "run",
        "configs/gpu64_qwen3_8b.yaml",
        "run.name=first",
        f"run.dir={job.folder}/shared/runs",
        f"run.cache={job.folder}/shared/cache",
        f"cluster.address=127.0.0.1:{port}",
        "cluster.wait_for_nodes_s=1800",
        "sleep.steps=3",
    ]
    sruns = job.calls("srun")
    rays = job.calls("ray")
    head, *others = [next(w for w in step["words"] if w.startswith("--nodelist")) for step in sruns]
    # the nodes start concurrently
    assert head == "--nodelist=n1" and sorted(others) == ["--nodelist=n2", "--nodelist=n3"]
    for step in sruns:
        assert {"--nodes=1", "--ntasks=1", "--cpus-per-task=64", "--gpus-per-node=8"} <= set(
            step["words"]
        )
    heads = [ray["words"] for ray in rays if "--head" in ray["words"]]
    assert [words[:5] for words in heads] == [
        [
            "start",
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--include-dashboard=false",
        ]
    ]
    assert sum(f"--address=127.0.0.1:{port}" in ray["words"] for ray in rays) == 2 == len(rays) - 1
    assert all({"--num-cpus=64", "--num-gpus=8", "--block"} <= set(ray["words"]) for ray in rays)
    for call in (*rays, run):
        check_command([call["name"], *call["words"]])
        assert call["env"]["RAY_AUTH_MODE"] == "token" and call["env"]["RAY_AUTH_TOKEN"] is None
        assert call["env"]["RAY_AUTH_TOKEN_PATH"] == str(job.token)
        assert call["env"]["HF_HOME"] == f"{job.folder}/shared/huggingface"
    records = (job.folder / "calls.jsonl").read_text()
    assert TOKEN not in records and records.count('"ended": true') == 3


def test_the_default_is_one_node_and_a_name_with_the_job_id(job):
    assert ended(job(nodes="n1")) == (0, "")
    (run,) = job.calls("sleep-rl")
    planned = plan(load(str(ROOT / "configs" / "gpu8_qwen3_8b.yaml"), []))
    assert (
        run["words"][1:3] == ["configs/gpu8_qwen3_8b.yaml", f"run.name=gpu8_qwen3_8b-{job.number}"]
        and planned.gpus == 8
    )
    assert len(job.calls("srun")) == 1


def test_usr1_requeues_the_job_and_resumes_the_run(job):
    script = job("configs/gpu8_qwen3_8b.yaml", nodes="n1 n2", LIFE="long")
    until_alive(job, script)
    script.send_signal(signal.SIGUSR1)
    assert ended(script) == (143, "slurm.sh: time limit")
    assert [call["words"] for call in job.calls("scontrol")][1:] == [["requeue", str(job.number)]]
    records = [json.loads(line) for line in (job.folder / "calls.jsonl").read_text().splitlines()]
    order = [
        record["name"]
        for record in records
        if "ended" in record or record["words"][:1] == ["requeue"]
    ]
    assert (
        order[0] == "sleep-rl" and order[-1] == "scontrol" and sorted(order[1:-1]) == ["ray", "ray"]
    )
    assert ended(job("configs/gpu8_qwen3_8b.yaml", nodes="n1 n2"))[0] == 0
    again = job.calls("sleep-rl")[1]
    assert again["words"] == [
        "resume",
        f"{job.folder}/shared/runs/gpu8_qwen3_8b-{job.number}",
        f"cluster.address=127.0.0.1:{20000 + job.number}",
        "cluster.wait_for_nodes_s=1800",
    ]
    check_command(["sleep-rl", *again["words"]])


def test_a_run_that_completes_after_usr1_is_not_requeued(job):
    script = job("configs/gpu8_qwen3_8b.yaml", nodes="n1", LIFE="long enough")
    until_alive(job, script)
    script.send_signal(signal.SIGUSR1)
    assert ended(script) == (0, "slurm.sh: time limit")
    assert [call["words"][0] for call in job.calls("scontrol")] == ["show"]


def test_a_cancelled_or_failed_job_is_not_requeued(job):
    script = job("configs/gpu8_qwen3_8b.yaml", nodes="n1", LIFE="long")
    until_alive(job, script)
    script.send_signal(signal.SIGTERM)
    assert ended(script) == (143, "slurm.sh: got SIGTERM")
    assert ended(job("configs/gpu8_qwen3_8b.yaml", "other", nodes="n1", LIFE="3")) == (3, "")
    assert [call["words"][0] for call in job.calls("scontrol")] == ["show", "show"]
    # the run, and both heads
    assert (job.folder / "calls.jsonl").read_text().count('"ended": true') == 3


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (
            {"RAY_AUTH_TOKEN_PATH": "none"},
            "no token in none; (umask 077; ray get-auth-token "
            "--generate > /dev/null) makes "
            "~/.ray/auth_token",
        ),
        (
            {"HEAD_IP": None},
            "the name n1 resolves to '127.0.1.1' here; set HEAD_IP to the node's address",
        ),
        ({"NODES": ""}, "scontrol names no node for n[1-3]"),
        ({"HEAD": "dies"}, "Ray's head on n1 ended before it accepted connections"),
        (
            {"HEAD": "late", "HEAD_TIMEOUT_S": "2"},
            "waited 2 s for Ray's head on n1 (127.0.0.1:PORT)",
        ),
    ],
    ids=["token", "name", "nodes", "dead", "late"],
)
def test_an_invalid_environment_is_one_line_and_starts_no_run(job, env, line):
    code, errors = ended(job(**{"nodes": "n1", **env} if "NODES" not in env else env))
    assert (code, errors) == (2, f"slurm.sh: {line.replace('PORT', str(20000 + job.number))}")
    assert not (job.folder / "shared").exists()


def test_a_token_that_others_can_read_is_refused(job):
    job.token.chmod(0o640)
    assert ended(job()) == (2, f"slurm.sh: others can read {job.token}; chmod 600 it")


def test_live_sh_prints_its_usage():
    for words, shared in ((["configs/demo.yaml"], "/s"), (["configs/demo.yaml", "name"], "")):
        done = subprocess.run(
            [ROOT / "cluster" / "deploy" / "live.sh", *words],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env={"PATH": os.environ["PATH"], "SLEEP_RL_SHARED": shared},
        )
        assert (done.returncode, done.stderr) == (
            2,
            "live.sh: expected CONFIG NAME "
            "[section.key=value ...] and "
            f"$SLEEP_RL_SHARED, got '{' '.join(words)}' "
            f"and '{shared}'\n",
        )


@pytest.mark.parametrize("name", ["slurm.sh", "live.sh"])
def test_the_scripts_pass_bash_and_shellcheck(name):
    tools = [["bash", "-n"]] + ([["shellcheck"]] if shutil.which("shellcheck") else [])
    for tool in tools:
        done = subprocess.run(
            [*tool, ROOT / "cluster" / "deploy" / name],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
