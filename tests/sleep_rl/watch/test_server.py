"""The server of the live page: who gets what, and the command that starts it."""

import base64
import fcntl
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from markupsafe import escape

from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.watch.server import Server
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, until
from tests.fakes.watched_runs import EVIL, begin, seed, wicked

ROOT = Path(__file__).parents[3]


def test_unchanged_state_gives_304(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    before = time.time()
    status, headers, body = client.ask()
    assert status == 200 and before - 0.01 < json.loads(body)["now"] < time.time() + 0.01
    assert client.ask(If_None_Match=headers["ETag"])[::2] == (304, "")
    seed(journal, 1, 0)
    status, again, _ = client.ask(If_None_Match=headers["ETag"])
    assert status == 200 and again["ETag"] != headers["ETag"]


def test_missing_and_removed_journals(tmp_path, watch):
    (tmp_path / "run.json").write_text("{}")
    client = watch()
    assert client.state()["text"] == "No record yet"
    assert client.ask("/report")[::2] == (
        503,
        f"cannot read metrics: No such file or directory: {tmp_path}/metrics.jsonl\n",
    )
    seed(begin(tmp_path), 1, 0)
    assert client.state()["curves"] and client.ask("/curves")[2].count("<figure") >= 3
    (tmp_path / "metrics.jsonl").unlink()
    assert client.state()["curves"] == ""
    (tmp_path / "metrics.jsonl").mkdir()
    assert client.ask()[::2] == (
        503,
        f"cannot read metrics: Is a directory: {tmp_path}/metrics.jsonl\n",
    )


def test_html_in_texts_is_escaped(tmp_path, watch):
    wicked(tmp_path)
    client = watch()
    state = client.state()
    for part in state["parts"].values():
        assert "<script" not in part and "<img" not in part and str(escape(EVIL)) in part
    # set as text by the page
    assert state["written"]["texts"] == [EVIL] and state["dreams"][0]["text"] == EVIL
    for path in ("/report", "/curves"):
        html = client.ask(path)[2]
        assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html


def test_security_headers(tmp_path, watch):
    begin(tmp_path)
    client = watch()
    for path in ("/", "/state.json", "/curves", "/report", "/none"):
        _, headers, _ = client.ask(path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';") and ("script-src 'sha256-" in policy) == (
            path == "/"
        )
        assert (
            "frame-ancestors 'none'" in policy
            and "unsafe-inline'; script" not in policy.replace("style-src 'unsafe-inline'", "")
        )
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == (
            "nosniff",
            "no-store",
        )
        assert (
            headers["Cross-Origin-Resource-Policy"] == "same-origin"
            and "Access-Control-Allow-Origin" not in headers
        )
    page = client.ask("/")[2]
    assert not re.search(r"(src|href)=\"(?!report\"|data:,)", page)
    # the policy's digest is that of the one script, to the byte
    [script] = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in client.ask("/")[1]["Content-Security-Policy"]
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")


def test_other_paths_give_404(tmp_path, watch):
    begin(tmp_path)
    client = watch()
    for path in (
        "/metrics.jsonl",
        "/run.json",
        "/logs/",
        "/../run.json",
        "/%2e%2e/run.json",
        "//etc/hostname",
        "/etc/hostname",
        "/report/../run.json",
        "/state.json/",
        "/?/run.json/..",
    ):
        status, _, body = client.ask(path)
        if path.startswith("/?"):
            assert status == 200 and "<main>" in body
        else:
            assert (status, body) == (404, "no such page\n"), path


@pytest.mark.parametrize(
    "method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"]
)
def test_other_methods_give_405(tmp_path, watch, method):
    begin(tmp_path)
    status, headers, body = watch().ask("/" if method != "CONNECT" else "x:1", method)
    assert (status, headers["Allow"], body) == (
        405,
        "GET",
        "" if method == "HEAD" else "only GET\n",
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8420", 200),
        ("127.0.0.1", 200),
        ("LOCALHOST:9000", 200),
        ("[::1]:8420", 200),
        ("rebound.example:8420", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
        ("[::1", 200),
        ("[evil.example]", 403),
    ],
)
def test_loopback_server_requires_local_host_name(tmp_path, watch, host, status):
    begin(tmp_path)
    client = watch()
    for path in ("/", "/state.json", "/curves", "/report"):
        assert client.ask(path, Host=host)[0] == status


def test_network_server_accepts_any_host_name(tmp_path, watch):
    begin(tmp_path)
    client = watch(host="0.0.0.0")
    assert (
        not client.server.loopback
        and client.ask("/state.json", Host="node-7.cluster:8420")[0] == 200
    )
    assert watch().server.loopback and watch().server.server_address[0] == "127.0.0.1"


def test_malformed_requests_do_not_stop_the_server(tmp_path, watch, capfd):
    begin(tmp_path)
    client = watch()
    long = b"GET " + b"a" * 70000 + b" HTTP/1.1\r\n\r\n"
    for request in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", long, b""):
        with socket.create_connection(
            client.server.server_address[:2], timeout=LIMIT_S
        ) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert client.ask("/")[0] == 200 and capfd.readouterr() == ("", "")


def test_exception_is_one_line_on_page_and_console(tmp_path, watch, capfd):
    begin(tmp_path)
    client = watch()
    client.server.run_state.update = lambda: {}["gone"]
    assert client.ask()[::2] == (500, "sleep-rl watch failed: KeyError: 'gone'\n")
    err = []
    until(lambda: err.append(capfd.readouterr().err) or "".join(err).endswith("\n"))
    assert "".join(err) == "sleep-rl watch: KeyError: 'gone'\n"


def test_missing_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a run"):
        Server(tmp_path, "127.0.0.1", 0, lambda folder: False)


def test_invalid_arguments_give_one_line_errors(tmp_path, capsys):
    begin(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            ([str(tmp_path / "none")], "expected the folder of a run with metrics.jsonl"),
            (
                [str(tmp_path), "--port", port],
                f"--port {port}: an address to listen at, got Address already in use",
            ),
            (
                [str(tmp_path), "--port", "70000"],
                "--port: 0 (any that is free) to 65535, got 70000",
            ),
            (
                [str(tmp_path), "--port", "x"],
                "Invalid value for '--port': 'x' is not a valid integer",
            ),
            ([str(tmp_path), "--host", "192.0.2.1"], "--host 192.0.2.1"),
            ([str(tmp_path), "--host", "a..b"], "--host a..b"),
        ]
        for argv, said in cases:
            assert main(["watch", *argv]) == 2
            out, err = capsys.readouterr()
            assert out == "" and said in err and err.count("\n") == 1, err


@pytest.mark.stack
def test_command_ends_on_ctrl_c_and_sees_the_run_lock(tmp_path):
    seed(begin(tmp_path), 1, 0)
    process = subprocess.Popen(
        [sys.executable, "-m", "sleep_rl", "watch", str(tmp_path), "--port", "0"],
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=as_at_a_terminal,
    )
    try:
        said = process.stdout.readline()
        host, port = re.match(
            r"http://(127\.0\.0\.1):(\d+) shows .*; stop with ctrl-C\n",
            said,
        ).groups()

        def state():
            connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT_S)
            connection.request("GET", "/state.json")
            return json.loads(connection.getresponse().read())

        assert state()["status"] == "failed"
        with open(tmp_path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            until(lambda: state()["status"] == "alive", process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, out, err) == (130, "", "sleep-rl: interrupted\n")
    finally:
        process.kill()


def test_server_imports_no_heavy_packages(tmp_path):
    machinery = {"ray", "vllm", "wandb", "deepspeed", "torch", "matplotlib"}
    code = f"import sys, sleep_rl.watch.server; print(sorted({machinery} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
