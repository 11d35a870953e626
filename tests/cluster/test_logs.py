"""`sleep-rl logs`: which logs there are, the end of one, and what comes while its run lives."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster import logs
from sleep_rl.cli.main import main
from sleep_rl.contracts.errors import InputError
from sleep_rl.runs.run_dir import alone, held
from tests.fakes.processes import LIMIT_S, as_at_a_terminal, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run's folder with three logs; a secret lies outside of it."""
    folder = tmp_path / "life"
    (folder / "logs").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "logs" / "rollout-0.log").write_bytes(
        b"first\nloading: 10%\rloading: 100%\r\n\x1b[31mred\x1b[0m \xff\n"
    )
    (folder / "logs" / "learner-0.log").write_bytes(
        b"".join(b"step %d %s\n" % (n, b"x" * 90) for n in range(3000))
    )
    (folder / "logs" / "stacks.log").write_bytes(b"")
    (tmp_path / "secret.log").write_text("secret\n")
    return folder


def test_without_an_actor_every_log_is_listed(run, capsys):
    assert main(["logs", str(run)]) == 0
    head, learner, rollout, stacks = capsys.readouterr().out.splitlines()
    assert head.split() == ["actor", "bytes", "last", "line"] and stacks.split() == ["stacks", "0"]
    assert learner.split()[:4] == ["learner-0", "301,890", "step", "2999"] and len(learner) < 130
    assert rollout.split() == ["rollout-0", "49", "red", "\N{REPLACEMENT CHARACTER}"]


def test_the_end_of_a_log_as_a_terminal_would_leave_it(run, capsys):
    assert main(["logs", str(run), "--actor", "rollout-0"]) == 0
    assert capsys.readouterr().out == "first\nloading: 100%\nred \N{REPLACEMENT CHARACTER}\n"
    for count in (0, 1, 2, 700, 3000, 4000):  # 64 KiB are about 650 lines
        found = list(logs.lines(str(run), "learner-0", count))
        assert [line.split()[1] for line in found] == [
            str(n) for n in range(max(3000 - count, 0), 3000)
        ]


@pytest.mark.parametrize(
    "name",
    ["../../secret", "../../etc/passwd", "/etc/passwd", "rollout-1", "", "rollout-0.log", "\0"],
)
def test_names_do_not_leave_the_folder_and_the_nearest_one_is_named(run, capsys, name):
    assert main(["logs", str(run), "--actor", name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "secret\n" not in err
    assert "--actor: one of learner-0, rollout-0, stacks, got" in err and "did you mean" in err
    if name.startswith("rollout"):
        assert err.endswith("did you mean rollout-0?\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--follow"], "--follow: follows one log, name it with --actor"),
        (["--actor", "rollout-0", "--lines", "-1"], "--lines: at least 0, got -1"),
        (
            ["--actor", "rollout-0", "--lines", "many"],
            "Invalid value for '--lines': 'many' is not a valid integer; see sleep-rl logs --help",
        ),
    ],
)
def test_a_bad_question_is_one_line(run, capsys, arguments, line):
    assert main(["logs", str(run), *arguments]) == 2
    assert capsys.readouterr() == ("", f"sleep-rl: {line}\n")


def test_a_folder_that_is_no_run_and_a_run_without_logs(tmp_path, run):
    with pytest.raises(
        InputError,
        match=r"none: expected the folder of a run, with run.json or metrics.jsonl in it",
    ):
        logs.listing(str(tmp_path / "none"))
    for file in (run / "logs").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no logs in .*cluster.backend=ray"):
        logs.listing(str(run))


def test_following_tells_what_comes_until_the_run_ends(run, monkeypatch):
    log, heard, looks = run / "logs" / "rollout-0.log", [], []
    log.write_text("one\nha")
    monkeypatch.setattr(logs, "POLL_S", 0.02)
    monkeypatch.setattr(logs, "held", lambda run: looks.append(run) or held(run))

    def follow():
        for line in logs.lines(str(run), "rollout-0", 5, follow=True):
            heard.append(line)

    def looked_twice():
        """It has read what is in the log at this moment."""
        enough = len(looks) + 2
        until(lambda: len(looks) >= enough)

    with alone(run):
        thread = threading.Thread(target=follow)
        thread.start()
        looked_twice()
        with open(log, "a") as file:
            file.write("lf\nthree\n")
        looked_twice()
        assert thread.is_alive(), "the run lives"
        log.write_text("anew\n")
        looked_twice()
        with open(log, "a") as file:
            file.write("the end")  # without a line's end: its process died
    thread.join(LIMIT_S)
    assert heard == ["one", "half", "three", "anew", "the end"]


def test_following_a_run_that_is_over_ends_at_once(run):
    assert list(logs.lines(str(run), "rollout-0", 1, follow=True)) == [
        "red \N{REPLACEMENT CHARACTER}"
    ]


@pytest.mark.parametrize("how", ["Ctrl-C", "closed pipe"])
def test_following_stops_when_nobody_looks_any_more(run, how):
    with alone(run):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sleep_rl",
                "logs",
                str(run),
                "--actor",
                "rollout-0",
                "--follow",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=as_at_a_terminal,
        )
        for _ in range(3):
            assert process.stdout.readline()
        if how == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
            with open(run / "logs" / "rollout-0.log", "a") as file:
                file.write("more\n")
        assert process.wait(LIMIT_S) == 0 and process.stderr.read() == b""
        process.stderr.close()
