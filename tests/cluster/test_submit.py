"""`sleep-rl submit` against a fake job server that checks each request; tests/cluster/test_jobs.py
runs it on a real cluster. What imports Ray is imported in the tests, since `make quick` needs none.
"""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.jobs import package
from sleep_rl.cli.main import main
from sleep_rl.config.loader import dump, load
from sleep_rl.contracts.errors import InputError
from tests.fakes.processes import LIMIT_S, as_at_a_terminal

pytestmark = pytest.mark.stack  # real commands in processes of their own

ROOT = Path(__file__).parents[2]
DEBUG = str(ROOT / "configs" / "debug.yaml")
TOKEN = "a-token-of-this-test"


class Server(ThreadingHTTPServer):
    """Responds like Ray's job server; the requests come from Ray's own client.

    A job goes through `hihistory`, a list of (status, whole log, exit code), one entry per request
    of its log, and stays at the last; an int in its place is an HTTP error.
    """

    daemon_threads = True

    def handle_error(self, *_):
        """Connections that a test breaks are not reported."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.version = b'{"version": "4", "ray_version": "2.60.0"}'
        self.redirect = ""
        self.history = [("SUCCEEDED", "whole log\n", 0)]
        self.packages = {}
        self.jobs = {}
        self.requests = []
        self.stopped = []
        self.hangs_up = False
        self.answers = threading.Event()  # what waits for an answer waits until it is set
        self.answers.set()
        self.lock = threading.Lock()

    def answer(self, method, path, headers, body):
        """(HTTP status, body, headers)"""
        self.requests.append((method, path))
        if self.redirect:
            return 307, b"", {"Location": self.redirect}
        if refusal := self.refusal(headers.get("Authorization")):
            return *refusal, {}
        if (method, path) == ("GET", "/api/version"):
            return 200, self.version, {}
        if path.startswith("/api/packages/gcs/_ray_pkg_") and path.endswith(".zip"):
            return self.answer_package(method, path, body)
        if (method, path) == ("POST", "/api/jobs/"):
            return self.answer_submission(headers, body)
        return self.answer_about(method, *path.removeprefix("/api/jobs/").partition("/"))

    def refusal(self, authorization):
        if not authorization:
            return 401, b"Unauthorized: Missing authentication token"
        if authorization != f"Bearer {TOKEN}":
            return 403, b"Forbidden: Invalid authentication token"
        return None

    def answer_package(self, method, path, body):
        uri = "gcs://" + path.rpartition("/")[2]
        if method == "PUT":
            self.packages[uri] = body
        return (200, b"", {}) if uri in self.packages else (404, b"Package does not exist", {})

    def answer_submission(self, headers, body):
        if self.hangs_up:
            raise ConnectionAbortedError
        job = json.loads(body)
        keys = {"submission_id", "entrypoint", "runtime_env", "metadata"}
        assert headers["Content-Type"] == "application/json" and job.keys() == keys
        assert all(isinstance(value, str) for value in job["metadata"].values())
        self.jobs[job["submission_id"]] = job
        answer = {"submission_id": job["submission_id"], "job_id": None}
        return 200, json.dumps(answer).encode(), {}

    def answer_about(self, method, job, _, verb):
        if job not in self.jobs:
            return 404, f"Job {job} does not exist".encode(), {}
        if (method, verb) == ("POST", "stop"):
            self.stopped.append(job)
            self.history = [("RUNNING", "", None), ("STOPPED", "", None)]
            return 200, b'{"stopped": true}', {}
        now = self.history[0]
        if isinstance(now, int):
            self.history.pop(0)
            return now, b"Traceback\n  somewhere\nOSError: the head is busy\n", {}
        if (verb == "logs" or job in self.stopped) and len(self.history) > 1:
            self.history.pop(0)
        answer = {
            "type": "SUBMISSION",
            "entrypoint": "exec python",
            "status": now[0],
            "message": "a reason",
            "driver_exit_code": now[2],
            "metadata": self.jobs[job]["metadata"],
        }
        if verb == "logs":
            answer = {"logs": now[1]}
        return 200, json.dumps(answer).encode(), {}


class Handler(BaseHTTPRequestHandler):
    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.answers.wait()
        with self.server.lock:
            code, answer, headers = self.server.answer(self.command, self.path, self.headers, body)
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = handle_any

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_API_SERVER_ADDRESS",
        "SLEEP_RL_COMMIT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr("cluster.jobs.submit.POLL_S", 0.01)
    monkeypatch.setattr("cluster.jobs.follow.POLL_S", 0.01)
    with Server() as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        yield server
        server.shutdown()


@pytest.fixture
def job(server):
    """The id of a job that exists."""
    server.jobs["life-1"] = {"metadata": {"run": "/shared/runs/life-1"}}
    return "life-1"


def code_of(root):
    packages = ("sleep_rl", "actors", "learners", "cluster", "tests")
    return [file for package in packages for file in (root / package).rglob("*.py")]


def cli(server, *argv):
    return main(["submit", *argv, "--address", server.address])


def test_submit_sends_code_config_and_absolute_paths(server, capsys, tmp_path, monkeypatch):
    from cluster.jobs.submit import STOP_S

    monkeypatch.chdir(tmp_path)
    server.history = [
        ("PENDING", "", None),
        ("RUNNING", "one\n", None),
        ("RUNNING", "one\ntwo\n", None),
        ("SUCCEEDED", "one\ntwo\nthree\n", 0),
    ]
    assert cli(server, DEBUG, "rollouts.workers=2", "run.dir=lives") == 0
    [(name, sent)] = server.jobs.items()
    assert re.fullmatch(r"debug-\d{4}-\d{6}", name)
    exec_, python, *command = shlex.split(sent["entrypoint"])
    assert (exec_, python, command[:4]) == (
        "exec",
        "python",
        ["-m", "sleep_rl", "run", "submitted/debug.yaml"],
    )
    with zipfile.ZipFile(
        io.BytesIO(server.packages[sent["runtime_env"]["working_dir"]])
    ) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "there")
    wanted = dump(load(DEBUG, ["rollouts.workers=2"]))
    wanted["run"] |= {
        "name": name,
        "dir": str(tmp_path / "lives"),
        "cache": str(tmp_path / "cache"),
    }
    wanted["cluster"]["address"] = "auto"
    assert dump(load(str(tmp_path / "there" / command[3]), command[4:])) == wanted
    assert {
        "sleep_rl/cli/main.py",
        "cluster/runtime/ray_backend.py",
        "configs/demo.yaml",
        "pyproject.toml",
    } <= set(names)
    assert not [n for n in names if re.match(r"(cache|runs|\.|build)/|.*(__pycache__|/\.)", n)]
    # all of the code, whatever its folders are called: sleep_rl/runs is a package
    assert {str(file.relative_to(ROOT)) for file in code_of(ROOT)} <= set(names)
    assert sent["metadata"]["config"] == DEBUG and sent["metadata"]["run"] == str(
        tmp_path / "lives" / name
    )
    assert re.fullmatch("[0-9a-f]{40}|unknown", sent["metadata"]["commit"])
    assert sent["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_S)
    out, err = capsys.readouterr()
    assert out.endswith("\none\ntwo\nthree\n") and out.count("one\n") == 1
    assert (
        f"sleep-rl submit --follow {name} --address {server.address}" in out
        and f"--stop {name}" in out
    )
    assert err == f"{name}: a reason\n"  # why it is still pending, once
    assert TOKEN not in out + err + json.dumps(sent)


def test_jobs_of_task_documents_share_one_run_folder(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("Nora Costa lives in Oslo.")
    monkeypatch.setattr(
        "cluster.jobs.submit.plan", lambda config: None
    )  # its base model is not here
    assert (
        cli(
            server,
            str(ROOT / "configs" / "documents_world.yaml"),
            "task.documents.path=notes",
            "run.name=mine",
        )
        == 0
    )
    [(job, sent)] = server.jobs.items()
    command = shlex.split(sent["entrypoint"])
    assert (
        job.startswith("mine-")
        and "run.name=mine" in command
        and sent["metadata"]["run"] == f"{tmp_path}/runs/mine"
    )
    assert f"task.documents.path={tmp_path}/notes" in command
    assert "task.documents.path=notes" not in command


def test_installed_sends_the_config_without_code(server, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"include: [{DEBUG}]\nrun: {{name: mine}}\n")
    assert cli(server, str(mine), "--installed") == 0
    [sent] = server.jobs.values()
    with zipfile.ZipFile(
        io.BytesIO(server.packages[sent["runtime_env"]["working_dir"]])
    ) as archive:
        assert archive.namelist() == ["submitted/mine.yaml"]


def test_existing_paths_become_absolute_and_hub_names_stay(tmp_path, monkeypatch):
    from cluster.jobs.submit import _absolute

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text("[]")
    (tmp_path / "small base").mkdir()
    (tmp_path / "own.py").write_text("")
    config = load(
        DEBUG,
        [
            "reward.semantic=custom",
            "reward.target=own.py:Same",
            "task.classify.path=data.json",
            "task.squad.path=rajpurkar/squad",
            "model.base=small base",
            "model.teachers=[small base, Qwen/Qwen3-0.6B]",
        ],
    )
    overrides = _absolute(config)
    got = load(DEBUG, ["reward.semantic=custom", *overrides])
    assert (got.task.classify.path, got.model.base) == (
        str(tmp_path / "data.json"),
        str(tmp_path / "small base"),
    )
    assert got.model.teachers == [str(tmp_path / "small base"), "Qwen/Qwen3-0.6B"]
    assert got.reward.target == f"{tmp_path}/own.py:Same"
    assert got.task.squad.path == "rajpurkar/squad" and not any(
        "squad" in text for text in overrides
    )


ENDS = [
    (("SUCCEEDED", "log\n", 0), 0, ""),
    (
        ("FAILED", "sleep-rl: x\n", 1),
        1,
        "life-1: failed with exit code 1; see the end of its log; sleep-rl submit "
        "--resume /shared/runs/life-1 --address ADDRESS resumes its run",
    ),
    (
        ("FAILED", "sleep-rl: x\n", 2),
        2,
        "life-1: failed with exit code 2; see the end of its log",
    ),
    (("FAILED", "", None), 1, "life-1: failed: a reason"),
    (
        ("STOPPED", "log\n", None),
        1,
        "life-1: was stopped; sleep-rl submit --resume "
        "/shared/runs/life-1 --address ADDRESS "
        "resumes its run",
    ),
]


@pytest.mark.parametrize(
    ("end", "code", "line"), ENDS, ids=[f"{end[0]}-{code}" for end, code, _ in ENDS]
)
def test_the_exit_code_is_that_of_the_run(server, job, capsys, end, code, line):
    server.history = [("RUNNING", "", None), end]
    assert cli(server, "--follow", job) == code
    out, err = capsys.readouterr()
    assert out == end[1]
    assert err == (f"sleep-rl: {line.replace('ADDRESS', server.address)}\n" if line else "")


def test_nothing_is_sent_for_an_invalid_config(server, capsys):
    assert cli(server, DEBUG, "model.base=./none") == 2
    assert cli(server, DEBUG, "sleep.stepps=3") == 2
    assert capsys.readouterr().err.count("\n") == 2 and server.requests == []


def test_failed_requests_are_retried_up_to_a_limit(server, job, capsys, monkeypatch):
    server.history = [
        ("RUNNING", "one\n", None),
        500,
        503,
        ("RUNNING", "one\ntwo\n", None),
        ("SUCCEEDED", "one\ntwo\n", 0),
    ]
    assert cli(server, "--follow", job) == 0
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"
    assert (
        err == f"{job}: {server.address} failed: OSError: the head is busy; retrying for 5:00 min\n"
    )
    monkeypatch.setattr("cluster.jobs.follow.RETRY_S", 0.2)
    server.history = [("RUNNING", "one\n", None)] + 10_000 * [500]
    assert cli(server, "--follow", job) == 1
    assert re.fullmatch(
        rf".*\nsleep-rl: {job}: .*the head is busy, for 0.2 s; sleep-rl submit "
        r"--follow .*\n",
        capsys.readouterr().err,
    )


def test_the_exit_code_is_returned_without_a_readable_log(server, job, capsys, monkeypatch):
    monkeypatch.setattr("cluster.jobs.follow.RETRY_S", 0.2)
    server.history = [("FAILED", "", 2)]
    answer = server.answer
    server.answer = lambda method, path, *rest: (
        (500, b"no agent", {}) if path.endswith("logs") else answer(method, path, *rest)
    )
    assert cli(server, "--follow", job) == 2
    assert "failed: no agent" in capsys.readouterr().err


REFUSALS = {
    "another server": (
        lambda s: setattr(s, "version", b"<html>hello</html>"),
        "--address: expected a Ray job server at ADDRESS, got <html>hello</html>",
    ),
    "a list": (
        lambda s: setattr(s, "version", b"[]"),
        "--address: expected a Ray job server at ADDRESS, got []",
    ),
    "nothing": (
        lambda s: setattr(s, "version", b""),
        "--address: expected a Ray job server at ADDRESS, got an empty response",
    ),
    "no Ray": (
        lambda s: setattr(s, "version", b"{}"),
        "--address: expected a Ray job server at ADDRESS, got a response without ray_version",
    ),
    "unknown": (lambda s: None, "ADDRESS: Job none does not exist"),
    "wrong token": (
        lambda s: os.environ.update(RAY_AUTH_TOKEN="other"),
        "ADDRESS rejects the token (403 Forbidden: Invalid authentication token): "
        "RAY_AUTH_TOKEN, or the file that "
        "RAY_AUTH_TOKEN_PATH names, must hold that of the cluster",
    ),
    "no token": (
        lambda s: os.environ.update(RAY_AUTH_MODE="disabled"),
        "ADDRESS rejects the token (401 Unauthorized: Missing authentication token): "
        "RAY_AUTH_TOKEN, or the file that "
        "RAY_AUTH_TOKEN_PATH names, must hold that of the cluster",
    ),
    "no file": (
        lambda s: (
            os.environ.pop("RAY_AUTH_TOKEN"),
            os.environ.update(RAY_AUTH_TOKEN_PATH="/none/token"),
        ),
        "RAY_AUTH_TOKEN_PATH /none/token: No such file or directory",
    ),
    "lines": (
        lambda s: os.environ.update(RAY_AUTH_TOKEN="two\nlines"),
        "RAY_AUTH_TOKEN: expected a token of printable characters in one line",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize("verb", ["--follow", "--stop"])
def test_a_refusal_of_the_job_server_is_one_line(server, capsys, case, verb, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # so that what a case sets is undone
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    harm, line = REFUSALS[case]
    harm(server)
    assert cli(server, verb, "none") == 2
    assert capsys.readouterr() == ("", f"sleep-rl: {line.replace('ADDRESS', server.address)}\n")


def test_a_submission_without_a_response_may_have_been_submitted(server, capsys):
    server.hangs_up = True
    assert cli(server, DEBUG) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        rf"sleep-rl: debug-\S+: no job server answers at {server.address}: .*; it may have been "
        r"submitted nevertheless: sleep-rl submit --follow .*\n",
        err,
    )
    assert server.packages


def test_an_upload_without_a_response_submits_nothing(server, capsys):
    answer = server.answer

    def hang_up(method, *rest):
        if method == "PUT":
            raise ConnectionAbortedError
        return answer(method, *rest)

    server.answer = hang_up
    assert cli(server, DEBUG) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"sleep-rl: no job server answers at {server.address}: ")
    assert "may have been" not in err and server.jobs == {}


def test_a_request_times_out(server, capsys, monkeypatch):
    from cluster.jobs.client import TIMEOUTS_S

    monkeypatch.setitem(TIMEOUTS_S, "GET", 0.2)
    server.answers.clear()  # a request without a deadline would wait for ever
    assert cli(server, "--follow", "x") == 2
    server.answers.set()
    assert "timed out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_given_address_wins_over_rays_environment_variables(server, job, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert cli(server, "--follow", job) == 0
    assert os.environ[name] == "http://127.0.0.1:9"


def test_an_unreachable_or_invalid_address_is_one_line(capsys, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main(["submit", DEBUG, "--address", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.startswith(
        "sleep-rl: no job server answers at http://127.0.0.1:9: "
    )
    for address in ("127.0.0.1:8265", "file:///etc/passwd", "http://a b", "http://x/api"):
        assert main(["submit", DEBUG, "--address", address]) == 2
        assert capsys.readouterr().err.endswith(f"e.g. http://HEAD:8265, got {address}\n")
    assert main(["submit", DEBUG]) == 2
    assert capsys.readouterr().err.endswith("e.g. http://HEAD:8265, got nothing\n")


def test_redirects_are_not_followed(server, capsys):
    with Server() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server.redirect = other.address + "/api/version"
        assert cli(server, "--follow", "x") == 2
        assert other.requests == [] and "got 307 an empty response" in capsys.readouterr().err
        other.shutdown()


@pytest.mark.parametrize("where", ["RAY_AUTH_TOKEN_PATH", "home"])
def test_the_token_is_looked_up_as_ray_does(server, job, monkeypatch, tmp_path, where):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli(server, "--follow", job) == 2
    file = tmp_path / ("token" if where != "home" else ".ray/auth_token")
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{TOKEN}\n")
    if where != "home":
        monkeypatch.setenv(where, str(file))
    assert cli(server, "--follow", job) == 0


def test_stop_prints_how_to_resume(server, job, capsys):
    server.history = [("RUNNING", "", None)]
    assert cli(server, "--stop", job) == 0 and server.stopped == [job]
    assert capsys.readouterr().out == (
        f"{job}: stopped; sleep-rl submit --resume "
        "/shared/runs/life-1 --address "
        f"{server.address} resumes its run\n"
    )
    assert cli(server, "--stop", job) == 0 and server.stopped == [job]
    assert capsys.readouterr().out == f"{job}: has ended already (STOPPED)\n"


def test_resume_keeps_the_run_folder_under_a_new_job_id(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        cli(server, "--resume", "runs/life-1125-070000", "rollouts.workers=3", "--accept", "data")
        == 0
    )
    assert cli(server, "--resume", "runs/other", "--installed") == 0
    (first, one), (second, two) = server.jobs.items()
    assert (
        re.fullmatch(r"life-\d{4}-\d{6}", first)
        and first != "life-1125-070000"
        and second.startswith("other-")
    )
    assert shlex.split(one["entrypoint"])[2:] == [
        "-m",
        "sleep_rl",
        "resume",
        f"{tmp_path}/runs/life-1125-070000",
        "rollouts.workers=3",
        "cluster.address=auto",
        "--accept",
        "data",
    ]
    assert one["metadata"]["run"] == f"{tmp_path}/runs/life-1125-070000"
    assert "working_dir" in one["runtime_env"] and "working_dir" not in two["runtime_env"]


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [DEBUG, "--stop", "x"],
        ["--stop", "x", "--follow", "y"],
        ["--follow", "x", "a.b=1"],
        ["--resume", "x", DEBUG],
    ],
    ids=lambda argv: " ".join(map(os.path.basename, argv)) or "none",
)
def test_submit_takes_exactly_one_of_config_follow_stop_resume(server, argv, capsys):
    assert cli(server, *argv) == 2 and server.requests == []
    assert capsys.readouterr().err.startswith(
        "sleep-rl: submit: expected a CONFIG or one of --follow JOB, --stop JOB, --resume"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_sigint_and_sighup_end_the_following_and_not_the_job(server, job, number):
    server.history = 10_000 * [("RUNNING", "begun\n", None)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sleep_rl", "submit", "--follow", job, "--address", server.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_at_a_terminal,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130 and out == ""
    assert err.strip() == (
        f"{job}: keeps running on the cluster; sleep-rl submit --follow {job} "
        f"--address {server.address} shows its "
        f"log, sleep-rl submit --stop {job} --address {server.address} stops it"
    )
    assert server.stopped == []


def test_sighup_is_ignored_under_nohup(server, job):
    server.history = 3 * [("RUNNING", "begun\n", None)] + [("SUCCEEDED", "begun\nended\n", 0)]
    process = subprocess.Popen(
        [
            "nohup",
            sys.executable,
            "-m",
            "sleep_rl",
            "submit",
            "--follow",
            job,
            "--address",
            server.address,
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=LIMIT_S) == ("ended\n", "") and process.returncode == 0


def test_a_closed_pipe_ends_the_following_and_not_the_job(server, job):
    server.history = [("RUNNING", "a\n" * n, None) for n in range(1, 1000)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sleep_rl", "submit", "--follow", job, "--address", server.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    err = process.stderr.read()
    assert (
        process.wait(LIMIT_S) == 130
        and "keeps running on the cluster" in err
        and "Traceback" not in err
        and "Exception" not in err
    )


class TestPackage:
    def tree(self, folder):
        for name in (
            "pyproject.toml",
            "sleep_rl/cli/main.py",
            "x.egg-info/PKG-INFO",
            ".env",
            ".git/config",
            "runs/a/log",
            "sleep_rl/__pycache__/cli.pyc",
            "cache/base",
            "wandb/run-1/files/code/main.py",
            "build/lib/sleep_rl/x.py",
            "sleep_rl/runs/run_dir.py",
            "mine/build/cache/wandb/rules.txt",
            "mine/.hidden/x.py",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        return folder

    def test_it_contains_the_sources_and_no_hidden_files(self, tmp_path):
        packed = package.package(self.tree(tmp_path), {"a/b.yaml": "x: 1"})
        with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
            assert archive.namelist() == [
                "a/b.yaml",
                "mine/build/cache/wandb/rules.txt",
                "pyproject.toml",
                "sleep_rl/cli/main.py",
                "sleep_rl/runs/run_dir.py",
                "x.egg-info/PKG-INFO",
            ]
            assert (
                archive.read("sleep_rl/cli/main.py") == b"sleep_rl/cli/main.py"
                and archive.read("a/b.yaml") == b"x: 1"
            )

    def test_what_is_left_out_is_named(self, tmp_path, server, monkeypatch, capsys):
        self.tree(tmp_path)
        (tmp_path / "data").symlink_to(tmp_path / "cache")
        (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
        (tmp_path / "same.py").symlink_to(tmp_path / "sleep_rl" / "cli" / "main.py")
        os.mkfifo(tmp_path / "mine" / "pipe")
        packed = package.package(tmp_path, {})
        assert packed.left_out == (
            ".env",
            ".git",
            "build",
            "cache",
            "data (a link to a folder)",
            "gone.py (not a regular file)",
            "mine/.hidden",
            "mine/pipe (not a regular file)",
            "runs",
            "wandb",
        )
        with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
            assert archive.read("same.py") == b"sleep_rl/cli/main.py"
        monkeypatch.setattr("cluster.jobs.submit.ROOT", tmp_path)
        monkeypatch.setattr("cluster.jobs.submit.MAX_NAMED", 2)
        assert cli(server, DEBUG) == 0
        assert re.search(
            r"^debug-\S+: the code is sent without \.env, \.git and 8 more$",
            capsys.readouterr().out,
            re.M,
        )

    def test_a_folder_of_code_is_sent_whatever_it_is_called(self, tmp_path):
        (self.tree(tmp_path) / "build" / "__init__.py").write_text("")
        packed = package.package(tmp_path, {})
        assert "build" not in packed.left_out and "cache" in packed.left_out
        with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
            assert {"build/__init__.py", "build/lib/sleep_rl/x.py"} <= set(archive.namelist())

    def test_git_and_ray_leave_out_the_same_folders_in_the_root_only(self):
        """Ray packs a working directory by .gitignore."""
        lines = (ROOT / ".gitignore").read_text().split()
        written = {line.strip("/") for line in lines if line.startswith("/")}
        assert written == package.DATA_FOLDERS
        assert not package.DATA_FOLDERS & {line.rstrip("/") for line in lines}

    def test_a_file_that_cannot_be_read_is_one_line(self, tmp_path, monkeypatch):
        self.tree(tmp_path)

        def locked(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "read_bytes", locked)
        with pytest.raises(InputError, match=r"^submit: cannot read .*: Permission denied$"):
            package.package(tmp_path, {})

    def test_equal_contents_give_equal_bytes(self, tmp_path):
        first = package.package(self.tree(tmp_path), {})
        time.sleep(0.01)
        os.utime(tmp_path / "pyproject.toml")
        assert package.package(tmp_path, {}) == first
        (tmp_path / "sleep_rl" / "cli.py").write_text("another")
        assert package.package(tmp_path, {}) != first

    def test_too_large_a_repository_names_the_largest_folder(self, tmp_path, monkeypatch, server):
        from cluster.jobs.client import JobServer

        monkeypatch.setattr("cluster.jobs.package.MAX_BYTES", 4 << 20)
        (self.tree(tmp_path) / "data").mkdir()
        (tmp_path / "data" / "big").write_bytes(bytes(5 << 20))
        with pytest.raises(
            InputError,
            match=r"^submit: .* holds 5 MiB beside .*, most of it in "
            r"data \(5 MiB\), too much to send",
        ):
            package.package(tmp_path, {})
        monkeypatch.setattr("cluster.jobs.client.MAX_BYTES", 1 << 20)
        with pytest.raises(
            InputError,
            match=r"^the working directory has 2 MiB as a zip file, a job server accepts 1 MiB$",
        ):
            JobServer(server.address).submit("x", "true", {}, {}, bytes(2 << 20))

    def test_a_folder_without_the_repository_is_refused(self, tmp_path):
        with pytest.raises(
            InputError,
            match=r"^submit: .* has no pyproject.toml, so it is not the repository; --installed",
        ):
            package.package(tmp_path, {})
