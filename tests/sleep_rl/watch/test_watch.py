"""The server of the live page: state, figures, access control; and the page in a real browser."""

import base64
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest
from markupsafe import escape

from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import peer_name
from sleep_rl.journal.journal import Journal
from sleep_rl.watch.page import PAGE
from sleep_rl.watch.server import PAGE_POLICY, Server
from sleep_rl.watch.state import QUIET_S
from sleep_rl.watch.workers import ROLES
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, until
from tests.fakes.watch_client import WatchClient

ROOT = Path(__file__).parents[3]
CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
CONFIG = {
    "task": {"name": "world", "days": 2},
    "rollouts": {"workers": 2},
    "learners": {"world_size": 1},
    "reward": {"workers": 1, "semantic": "none"},
}


def begin(folder, config=CONFIG):
    (folder / "run.json").write_text("{}")
    journal = Journal(folder / "metrics.jsonl")
    journal.log(
        "run",
        config=config,
        task="world",
        model="tiny",
        started=time.time(),
        commit="3f2a9c1",
        seeds=[7],
    )
    return journal


def seed(journal, night, *steps, of=4, **more):
    for step in steps:
        journal.log(
            "seed",
            night=night,
            sender=0,
            day=f"day {night}",
            step=step,
            steps=of,
            loss=night + step / 10,
            divergence=0.5,
            reward_mean=0.8,
            logprob_gap=1e-6,
            tokens_trained=900,
            seconds=0.5,
            **more,
        )


def evaluated(journal, after, **row):
    journal.log(
        "evaluate", after=after, method="sleep", row=row, open_book=None, n=dict.fromkeys(row, 10)
    )


@pytest.fixture
def watch(tmp_path):
    clients = []

    def make(folder=tmp_path, **how):
        clients.append(WatchClient(folder, **how))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


# ---- the state


def test_state_follows_the_run(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    state = client.state()
    assert (state["name"], state["text"], state["curves"], state["alive"]) == (
        tmp_path.name,
        "Running",
        "",
        True,
    )
    assert state["facts"] == {"task": "world", "model": "tiny", "seed": "7", "commit": "3f2a9c1"}
    assert (
        "No evaluation after a night yet" in state["parts"]["retention"]
        and client.asked[-1] == tmp_path
    )
    evaluated(journal, "base", known=1.0)
    seed(journal, 1, 0, 1)
    state = client.state()
    assert client.curve("Seeding loss", "loss") == [(0, 1.0), (1, 1.1)]
    assert state["phase"]["text"] == "Night 1 of 2: consolidation"
    assert (state["phase"]["step"], state["phase"]["steps"]) == (2, 4)
    assert re.fullmatch(r"[\d.]+ s", state["phase"]["left"])
    seed(journal, 1, 2, 3)
    evaluated(journal, "night 1", known=0.9, **{"day 1": 0.75})
    seed(journal, 2, 0)
    state = client.state()
    assert client.curve("Seeding loss", "loss") == [
        (0, 1.0),
        (1, 1.1),
        (2, 1.2),
        (3, 1.3),
        (4, None),
        (4, 2.0),
    ]
    assert client.chart("Seeding loss").nights == ((0, "night 1"), (4, "night 2"))
    assert ">0.75</td>" in state["parts"]["retention"] and state["read"] == state["size"]
    # one step has no pace
    assert "left" not in state["phase"] and state["phase"]["text"] == "Night 2 of 2: consolidation"


@pytest.mark.parametrize(("task", "text"), [("world", "Night 1 of 3"), ("documents", "Night 1")])
def test_number_of_nights_defaults_to_the_task(tmp_path, watch, task, text):
    config = CONFIG | {"task": {"name": task, "days": None}}
    journal = begin(tmp_path, config)
    client = watch()
    seed(journal, 1, 0, 1)
    assert client.state()["phase"]["text"] == f"{text}: consolidation"


def test_workers_have_activities_restarts_and_last_log_lines(tmp_path, watch):
    journal = begin(tmp_path)
    journal.log(
        "sample",
        weights="student",
        tokens=800,
        sequences=400,
        failed=0,
        tokens_per_second=7320.1,
        seconds=0.1,
    )
    journal.log(
        "push",
        name="student",
        version=12,
        bytes=1,
        tensors=1,
        seconds=0.02,
        workers=2,
        probe_gap=0.0,
        pause=0.01,
    )
    seed(journal, 1, 2)
    journal.log("restarted", worker="rollout-1", reason="died")
    journal.log("restarted", worker="all workers", reason="learner lost")
    journal.log("scaled", worker="rollout-2", joined=True, workers=3)
    journal.log("scaled", worker="rollout-0", joined=False, workers=2)
    (tmp_path / "logs").mkdir()
    ended = b"\x1b[31mloading\x1b[0m 10%\rloading 100%\x00 \xff\n\n"
    (tmp_path / "logs" / "rollout-1.log").write_bytes(b"a\n" * 5000 + ended)
    (tmp_path / "logs" / "stacks.log").write_text("Thread 1")
    (tmp_path / "logs" / "learner-0.log").write_text("")
    (tmp_path / "logs" / "stolen.log").symlink_to("/etc/hostname")
    crew = {role["role"]: role for role in watch().state()["workers"]}
    assert list(crew) == ["rollout", "learner", "reward", "files"]
    assert [activity["text"] for activity in crew["rollout"]["activities"]] == [
        "verified version 12 of the student",
        "sampled 400 sequences (student), 7,320 tokens a second",
    ]
    workers = {w["name"]: w for role in crew.values() for w in role["workers"]}
    assert list(workers) == [
        "rollout-0",
        "rollout-1",
        "rollout-2",
        "learner-0",
        "reward-0",
        "stacks",
    ]
    assert [workers[f"rollout-{i}"]["left"] for i in range(3)] == [True, False, False]
    assert (workers["rollout-1"]["restarts"], crew["learner"]["restarts"]) == (1, 1)
    log = workers["rollout-1"]["log"]
    written = (tmp_path / "logs" / "rollout-1.log").stat().st_mtime
    assert log["line"] == "loading 100% \ufffd" and log["t"] == pytest.approx(written, abs=0.01)
    assert workers["learner-0"]["log"]["line"] == "" and workers["reward-0"]["log"] is None
    assert [activity["text"] for activity in crew["learner"]["activities"]] == [
        "consolidation, step 3 of 4, loss 1.200"
    ]
    assert crew["reward"]["activities"][0]["text"] == "mean reward 0.80"


def test_workers_of_model_teachers_have_role_peer(tmp_path, watch):
    begin(tmp_path, {**CONFIG, "model": {"teachers": ["A", "B"]}})
    [role] = [role for role in watch().state()["workers"] if role["role"] == "peer"]
    assert [worker["name"] for worker in role["workers"]] == [peer_name(1), peer_name(2)]
    assert all(f"{name}: '" in PAGE for name in (*ROLES, "files"))  # each has a heading


def test_growing_log_is_read_again(tmp_path, watch):
    begin(tmp_path)
    client = watch()
    log = tmp_path / "logs" / "rollout-0.log"
    log.parent.mkdir()
    for text in ("one", "two"):
        with open(log, "a") as file:
            file.write(f"{text}\n")
        [rollouts] = [role for role in client.state()["workers"] if role["role"] == "rollout"]
        assert rollouts["workers"][0]["log"]["line"] == text


def test_status_of_running_quiet_stopped_and_ended_runs(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0)
    assert (client.state()["status"], client.state()["text"]) == ("alive", "Running")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"t": time.time() - QUIET_S - 1, "kind": "flow"}) + "\n")
    assert (client.state()["status"], client.state()["text"]) == (
        "quiet",
        "No record for more than 2:00 min",
    )
    client.alive = False
    state = client.state()
    assert (state["status"], state["alive"]) == ("failed", False)
    # as of an evaluation, which cannot be resumed
    (tmp_path / "run.json").rename(tmp_path / "aside")
    assert (client.state()["status"], client.state()["text"]) == (
        "idle",
        "No process works in this folder",
    )
    (tmp_path / "aside").rename(tmp_path / "run.json")
    assert (
        state["text"]
        == f"Stopped: no process works in this run; sleep-rl resume {tmp_path} continues it"
    )
    journal.log("done", seconds=75, status="failed", reason="loss is nan at step 3")
    assert client.state()["text"] == "Failed after 1:15 min: loss is nan at step 3"
    journal.log("done", seconds=75, status="ok", reason=None)
    assert (client.state()["status"], client.state()["text"]) == ("ok", "Finished in 1:15 min")
    assert "left" not in client.state()["phase"]


def test_truncated_journal_resets_the_state(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0, 1)
    keep = journal.size()
    seed(journal, 1, 2, 3)
    journal.log("failure", where="reward", reason="timed out", count=3)
    before = client.state()["curves"]
    assert len(client.curve("Seeding loss", "loss")) == 4
    journal.cut(keep)
    seed(journal, 1, 2, reward_abs=0.5)
    state = client.state()
    assert (
        client.curve("Seeding loss", "loss") == [(0, 1.0), (1, 1.1), (2, 1.2)]
        and state["parts"]["failures"] == ""
    )
    assert client.curve("Imitation reward", "edit distance") == [(2, 0.5)]
    assert state["curves"] != before


def test_invalid_records_are_counted_and_skipped(tmp_path, watch):
    journal = begin(tmp_path)
    journal.close()
    senseless = [
        {"kind": "evaluate"},
        {"kind": "evaluate", "after": "base", "method": "sleep", "row": {"known": "much"}},
        {"kind": "seed", "night": 1, "step": "one"},
        {"kind": "seed", "night": [], "step": None},
        {"kind": "push", "name": []},
        {"kind": "run", "config": []},
        {"kind": "completion", "day": 1},
        {"kind": "dream"},
        {"kind": "scaled"},
        {"kind": "baseline", "method": {}, "step": 1},
        {"kind": "failure", "count": "many"},
        {"kind": "__class__"},
        {"kind": "written", "new": "a", "unconditional": None, "examples": 5},
        {"kind": "done", "seconds": "x"},
    ]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"t": 1.0, **record}) + "\n" for record in senseless)
        file.write('{"t": 1, "ki\n')
    seed(Journal(tmp_path / "metrics.jsonl"), 1, 0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        # not ended yet: neither read nor counted
        file.write('{"t": 1, "kind": "seed", "step"')
    client = watch()
    state = client.state()
    assert client.curve("Seeding loss", "loss") == [(0, 1.0)]
    # one of them is sound, of a kind that nobody knows, and one more is torn
    assert state["left_out"] == len(senseless) - 1 + 1


def test_state_of_a_long_run_is_small(tmp_path, watch):
    journal = begin(tmp_path)
    for night in range(1, 41):
        seed(journal, night, *range(100), of=100)
        for i in range(30):
            journal.log(
                "completion",
                when="after",
                day=f"day {night}",
                question=f"q{i}",
                prompt="p",
                answer="a",
                completion="c",
                score=1,
            )
            journal.log(
                "dream",
                night=night,
                round=1,
                task="t",
                number=i,
                text="d" * 50,
                reason="",
                kept=True,
                reward=1,
                gain=0.1,
            )
    client = watch()
    read = []
    add = client.server.run_state.add
    client.server.run_state.add = lambda record: read.append(record) or add(record)
    client.state()
    status, _, body = client.ask()
    assert status == 200 and len(body) < 150_000
    assert len(read) == 1 + 40 * 160
    client.state()
    assert len(read) == 1 + 40 * 160  # nothing is read twice


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


def test_figures_equal_the_report_and_are_redrawn_on_change(tmp_path, watch, monkeypatch):
    from sleep_rl.watch import figures

    drawn = []
    draw = figures.figure
    monkeypatch.setattr(figures, "figure", lambda chart: drawn.append(chart) or draw(chart))
    monkeypatch.setattr(figures, "REDRAW_S", 0.0)
    monkeypatch.setattr(figures, "SHARE", 1e9)
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0, 1)
    version = client.state()["curves"]
    status, headers, html = client.ask("/curves")
    assert status == 200 and headers["ETag"] == f'"{version}"'
    titles = re.findall(r"<figure><h3>(.*?)</h3>", html)
    assert titles[:2] == ["Seeding loss", "Divergence"] and html.count("<svg") == len(titles)
    assert "loss <b>1.1</b>" in html and len(drawn) == len(titles)
    svgs = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    report = client.ask("/report")[2]
    assert all(svg in report for svg in svgs)
    # what does not change a chart is no reason to draw it
    del drawn[:]
    journal.log("flow", night=1, round=1)
    assert client.state()["curves"] == version
    journal.log("push", name="student", version=1, bytes=5, seconds=0.5)
    assert client.state()["curves"] != version
    assert client.ask("/curves")[1]["ETag"] == f'"{client.state()["curves"]}"'
    assert [chart.panel.title for chart in drawn] == ["Weight push: time", "Weight push: size"]


def test_drawing_is_rate_limited(tmp_path, watch):
    journal = begin(tmp_path)
    client = watch()
    seed(journal, 1, 0)
    version = client.state()["curves"]
    assert client.ask("/curves")[1]["ETag"] == f'"{version}"'
    for step in range(1, 4):
        seed(journal, 1, step)
        assert client.state()["curves"] != version
        # the figures of before, and they say so
        assert client.ask("/curves")[1]["ETag"] == f'"{version}"'


# ---- who gets what


def wicked(folder):
    """Write a run in which every text is a script."""
    journal = begin(folder, {**CONFIG, "note": EVIL})
    seed(journal, 1, 0)
    evaluated(journal, "base", known=1.0)
    evaluated(journal, "night 1", known=1.0, **{EVIL: 0.5})
    journal.log(
        "completion",
        when="after",
        day=EVIL,
        question="q",
        prompt=EVIL,
        answer=EVIL,
        completion=EVIL,
        score=1,
    )
    for name in (EVIL, '"><script>1</script>'):
        journal.log("push", name=name, version=1, bytes=1, seconds=0.1)
        journal.log("baseline", method=name, day=EVIL, step=0, steps=1, loss=1.0)
    journal.log("written", night=1, sender=0, new=1, unconditional=1, examples=[EVIL])
    journal.log(
        "dream",
        night=1,
        round=1,
        task=EVIL,
        number=0,
        text=EVIL,
        reason="",
        kept=True,
        reward=1,
        gain=0.1,
        importance=1.0,
        tau_before=0.5,
        taus=[0.6],
        held_out=0.1,
        logprob=-1.0,
    )
    journal.log("failure", where=EVIL, reason=EVIL, count=1)
    journal.log("restarted", worker=EVIL, reason=EVIL)
    (folder / "logs").mkdir()
    (folder / "logs" / "rollout-0.log").write_text(EVIL)
    return journal


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


# ---- the command line


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


def test_missing_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder of a run"):
        Server(tmp_path, "127.0.0.1", 0, lambda folder: False)


# ---- a browser

browser = pytest.mark.skipif(not CHROME, reason="no chromium or chrome on this machine's PATH")


def dom(url, tmp_path, milliseconds=4000, width=1200):
    """Return the page's DOM after a while in a real browser. One that hangs, as chromium may on a
    busy machine, is killed with its children and started again.
    """
    for last in (False, True):
        browser = subprocess.Popen(
            [
                CHROME,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--window-size={width},2000",
                f"--user-data-dir={tmp_path / f'profile-{last}'}",
                f"--virtual-time-budget={milliseconds}",
                "--dump-dom",
                url,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            page, _ = browser.communicate(timeout=LIMIT_S if last else 120)
            assert browser.returncode == 0 and "<main>" in page
            return page
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.communicate()
            assert not last, "two browsers hung"


@pytest.mark.stack
@browser
def test_browser_shows_the_run_with_escaped_texts(tmp_path, watch):
    folder = tmp_path / "run"
    folder.mkdir()
    wicked(folder)
    page = dom(watch(folder).server.url, tmp_path)
    assert "<title>run – sleep_rl</title>" in page and "Running" in page and "Night 1 of 2" in page
    # its own script, and none of the run's
    assert page.count("<script>") == 1 and page.count("<img") == 0
    shown = unescape(re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert shown.count(EVIL) >= 8  # document, completion, day, dream, task, failure, worker, log
    assert page.count("<figure") >= 3 and re.search(r"<b>1\.?0?</b>", page) and "<svg" in page


@pytest.mark.stack
@browser
def test_browser_follows_a_running_run(tmp_path, watch, monkeypatch):
    """Each time that the server checks the lock, the run has one more step."""
    folder = tmp_path / "run"
    folder.mkdir()
    journal = begin(folder)
    steps = []

    def grow(asked):
        assert asked == folder
        steps.append(len(steps))
        seed(journal, 1, steps[-1], of=400)
        return True

    client = watch(folder)
    client.server._held = grow
    monkeypatch.setattr("sleep_rl.watch.server.HOLD_S", 0.0)
    page = dom(client.server.url, tmp_path, 9000)
    step = int(re.search(r"Night 1 of 2: consolidation, step (\d+) of 400", page)[1])
    assert 4 <= step < len(steps) + 1 and re.search(r"style=\"width: ?[\d.]+%", page)


@pytest.mark.stack
@browser
def test_page_fits_a_narrow_screen(tmp_path, watch, monkeypatch):
    """A second script, allowed for this test, writes the width of the page into its title."""
    folder = tmp_path / "run"
    folder.mkdir()
    wicked(folder).log(
        "written", night=1, sender=0, new=1, unconditional=1, examples=["long" * 200, "a" * 400]
    )
    probe = (
        "setInterval(() => { document.title = "
        "[document.documentElement.scrollWidth, innerWidth].join(' of ') }, 100)"
    )
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    monkeypatch.setattr(
        "sleep_rl.watch.server.PAGE", PAGE.replace("</body>", f"<script>{probe}</script></body>")
    )
    monkeypatch.setattr(
        "sleep_rl.watch.server.PAGE_POLICY",
        PAGE_POLICY.replace("script-src ", f"script-src 'sha256-{digest}' "),
    )
    page = dom(watch(folder).server.url, tmp_path, width=500)
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", page).groups())
    assert wide <= window <= 500 and "Newest texts" in page
