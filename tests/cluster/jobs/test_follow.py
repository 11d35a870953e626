"""`sleep-rl submit --follow`: the log and the exit code of a job, and what ends the following."""

import re
import signal
import subprocess
import sys

import pytest

from tests.fakes.job_server import submit
from tests.fakes.processes import LIMIT_S, ROOT, as_at_a_terminal

pytestmark = pytest.mark.stack  # real commands in processes of their own

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
    assert submit(server, "--follow", job) == code
    out, err = capsys.readouterr()
    assert out == end[1]
    assert err == (f"sleep-rl: {line.replace('ADDRESS', server.address)}\n" if line else "")


def test_failed_requests_are_retried_up_to_a_limit(server, job, capsys, monkeypatch):
    server.history = [
        ("RUNNING", "one\n", None),
        500,
        503,
        ("RUNNING", "one\ntwo\n", None),
        ("SUCCEEDED", "one\ntwo\n", 0),
    ]
    assert submit(server, "--follow", job) == 0
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"
    assert (
        err == f"{job}: {server.address} failed: OSError: the head is busy; retrying for 5:00 min\n"
    )
    monkeypatch.setattr("cluster.jobs.follow.RETRY_S", 0.2)
    server.history = [("RUNNING", "one\n", None)] + 10_000 * [500]
    assert submit(server, "--follow", job) == 1
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
    assert submit(server, "--follow", job) == 2
    assert "failed: no agent" in capsys.readouterr().err


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
