"""The client of a job server: refusals, deadlines, addresses and tokens."""

import os
import re

import pytest

from sleep_rl.cli.main import main
from tests.fakes.http_servers import in_a_thread
from tests.fakes.job_server import DEBUG, TOKEN, JobServer, submit

pytestmark = pytest.mark.stack  # real commands in processes of their own

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
    assert submit(server, verb, "none") == 2
    assert capsys.readouterr() == ("", f"sleep-rl: {line.replace('ADDRESS', server.address)}\n")


def test_a_submission_without_a_response_may_have_been_submitted(server, capsys):
    server.hangs_up = True
    assert submit(server, DEBUG) == 1
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
    assert submit(server, DEBUG) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"sleep-rl: no job server answers at {server.address}: ")
    assert "may have been" not in err and server.jobs == {}


def test_a_request_times_out(server, capsys, monkeypatch):
    from cluster.jobs.client import TIMEOUTS_S

    monkeypatch.setitem(TIMEOUTS_S, "GET", 0.2)
    server.answers.clear()  # a request without a deadline would wait for ever
    assert submit(server, "--follow", "x") == 2
    server.answers.set()
    assert "timed out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_the_given_address_wins_over_rays_environment_variables(server, job, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert submit(server, "--follow", job) == 0
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
    other = JobServer()
    with in_a_thread(other):
        server.redirect = other.address + "/api/version"
        assert submit(server, "--follow", "x") == 2
        assert other.requests == [] and "got 307 an empty response" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["RAY_AUTH_TOKEN_PATH", "home"])
def test_the_token_is_looked_up_as_ray_does(server, job, monkeypatch, tmp_path, where):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert submit(server, "--follow", job) == 2
    file = tmp_path / ("token" if where != "home" else ".ray/auth_token")
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{TOKEN}\n")
    if where != "home":
        monkeypatch.setenv(where, str(file))
    assert submit(server, "--follow", job) == 0
