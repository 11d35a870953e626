"""`sleep-rl logs`: the list of logs, the end of one, and following a live run."""

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
    """A run's folder with three logs, and a secret outside of it."""
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


def test_without_an_actor_all_logs_are_listed(run, capsys):
    assert main(["logs", str(run)]) == 0
    head, learner, rollout, stacks = capsys.readouterr().out.splitlines()
    assert head.split() == ["actor", "bytes", "last", "line"] and stacks.split() == ["stacks", "0"]
    assert learner.split()[:4] == ["learner-0", "301,890", "step", "2999"] and len(learner) < 130
    assert rollout.split() == ["rollout-0", "49", "red", "\N{REPLACEMENT CHARACTER}"]


def test_lines_are_shown_as_a_terminal_displays_them(run, capsys):
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
def test_an_unknown_actor_is_refused_with_the_nearest_name(run, capsys, name):
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
def test_invalid_options_are_one_line(run, capsys, arguments, line):
    assert main(["logs", str(run), *arguments]) == 2
    assert capsys.readouterr() == ("", f"sleep-rl: {line}\n")


def test_a_folder_without_a_run_or_without_logs_is_refused(tmp_path, run):
    with pytest.raises(
        InputError,
        match=r"none: expected the folder of a run, with run.json or metrics.jsonl in it",
    ):
        logs.listing(str(tmp_path / "none"))
    for file in (run / "logs").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no logs in .*cluster.backend=ray"):
        logs.listing(str(run))


def test_follow_yields_new_lines_until_the_run_ends(run, monkeypatch):
    log = run / "logs" / "rollout-0.log"
    followed = []
    polls = []
    log.write_text("one\nha")
    monkeypatch.setattr(logs, "POLL_S", 0.02)
    monkeypatch.setattr(logs, "held", lambda run: polls.append(run) or held(run))

    def follow():
        for line in logs.lines(str(run), "rollout-0", 5, follow=True):
            followed.append(line)

    def wait_for_two_polls():
        """Wait until the present content of the log has been read."""
        enough = len(polls) + 2
        until(lambda: len(polls) >= enough)

    with alone(run):
        thread = threading.Thread(target=follow)
        thread.start()
        wait_for_two_polls()
        with open(log, "a") as file:
            file.write("lf\nthree\n")
        wait_for_two_polls()
        assert thread.is_alive(), "the run is live"
        log.write_text("anew\n")
        wait_for_two_polls()
        with open(log, "a") as file:
            file.write("the end")  # an incomplete line: its process died
    thread.join(LIMIT_S)
    assert followed == ["one", "half", "three", "anew", "the end"]


def test_following_an_ended_run_ends_at_once(run):
    assert list(logs.lines(str(run), "rollout-0", 1, follow=True)) == [
        "red \N{REPLACEMENT CHARACTER}"
    ]


@pytest.mark.parametrize("cause", ["Ctrl-C", "closed pipe"])
def test_following_ends_on_ctrl_c_and_on_a_closed_pipe(run, cause):
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
        if cause == "Ctrl-C":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
            with open(run / "logs" / "rollout-0.log", "a") as file:
                file.write("more\n")
        assert process.wait(LIMIT_S) == 0 and process.stderr.read() == b""
        process.stderr.close()
