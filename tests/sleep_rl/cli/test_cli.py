"""The command line: exit codes, one line on stderr per failure, no heavy imports."""

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sleep_rl.cli.main import cli, main
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError, RunError
from tests.fakes.processes import LIMIT_S

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """A fake `cluster.launch` that records calls; `outcome` is returned, or raised."""
    calls = []
    module = types.ModuleType("cluster.launch")
    module.outcome = 0

    def end(*call):
        calls.append(call)
        if isinstance(module.outcome, BaseException):
            raise module.outcome
        return module.outcome

    module.run = lambda config: end("run", config.run.name)
    module.evaluate = lambda checkpoint, config: end("evaluate", checkpoint, config.run.name)
    module.pretrain = lambda config: end("pretrain", config.run.name)
    module.calls = calls
    monkeypatch.setitem(sys.modules, "cluster.launch", module)
    monkeypatch.chdir(tmp_path)  # no cache of an earlier run in sight
    return module


@pytest.fixture
def report(monkeypatch):
    module = types.ModuleType("sleep_rl.report.page")
    module.write_report = lambda run: Path(run) / "report.html"
    monkeypatch.setitem(sys.modules, "sleep_rl.report.page", module)
    summary = types.ModuleType("sleep_rl.report.summary")
    summary.summarize = lambda runs: f"{len(runs)} runs"
    monkeypatch.setitem(sys.modules, "sleep_rl.report.summary", summary)


def test_commands_pass_their_config(launch):
    assert main(["run", DEMO, "run.name=one"]) == 0
    assert main(["pretrain", DEMO]) == 0
    launch.outcome = 1
    assert main(["eval", "runs/x", DEMO]) == 1
    assert launch.calls == [("run", "one"), ("pretrain", "demo"), ("evaluate", "runs/x", "demo")]


FAILURES = [
    (InputError("model.base: expected a,\ngot b"), 2, "sleep-rl: model.base: expected a, got b\n"),
    (RunError("loss is nan at step 3"), 1, "sleep-rl: loss is nan at step 3\n"),
    (
        OSError(errno.ENOSPC, "No space left on device", "runs/x"),
        1,
        "sleep-rl: cannot write runs/x: No space left on device\n",
    ),
    (KeyboardInterrupt(), 130, "sleep-rl: interrupted\n"),
]


@pytest.mark.parametrize(
    ("error", "code", "line"), FAILURES, ids=[type(e).__name__ for e, _, _ in FAILURES]
)
def test_failure_gives_exit_code_and_one_line(launch, capsys, error, code, line):
    launch.outcome = error
    assert main(["run", DEMO]) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(errno.ECONNRESET, "a bug")])
def test_unexpected_exception_is_raised(launch, error):
    launch.outcome = error
    with pytest.raises(type(error), match="a bug"):
        main(["run", DEMO])


BAD_LINES = [
    ([], "Missing command; see sleep-rl --help"),
    (["fly"], "No such command 'fly'; see sleep-rl --help"),
    (["run"], "Missing argument 'CONFIG'; see sleep-rl run --help"),
    (
        ["eval", "checkpoint"],
        "Missing argument 'CONFIG'; see sleep-rl eval --help",
    ),
    (["run", DEMO, "--fast"], "No such option '--fast'; see sleep-rl run --help"),
    (["plan", "none.yaml"], "cannot read none.yaml: No such file or directory"),
    (
        ["plan", DEMO, "sleep.stepps=3"],
        "command line: unknown key sleep.stepps; did you mean sleep.steps?",
    ),
]


@pytest.mark.parametrize(
    ("argv", "line"), BAD_LINES, ids=[" ".join(map(os.path.basename, a)) for a, _ in BAD_LINES]
)
def test_invalid_command_line_gives_one_line_error(capsys, tmp_path, monkeypatch, argv, line):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert capsys.readouterr() == ("", f"sleep-rl: {line}\n")


def test_overrides_may_follow_options(monkeypatch, capsys):
    from sleep_rl.runs import ablate

    asked = []
    monkeypatch.setattr(ablate, "ablate", lambda *arguments: asked.append(arguments) or "table")
    for argv in (
        ["--seeds", "2", DEMO, "sleep.steps=3", "run.seed=1"],
        [DEMO, "--seeds", "2", "sleep.steps=3", "run.seed=1"],
        [DEMO, "sleep.steps=3", "--seeds", "2", "run.seed=1"],
    ):
        assert main(["ablate", *argv]) == 0
    assert asked == [(DEMO, ["sleep.steps=3", "run.seed=1"], [], 2)] * 3
    assert (
        main(["ablate", DEMO, "--seeds", "2", "stray"]) == 2
        and "expected section.key=value, got stray; see sleep-rl ablate --help"
        in capsys.readouterr().err
    )


def test_run_is_refused_by_the_plan(launch, capsys):
    assert main(["run", DEMO, "model.base=./none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert launch.calls == []


def test_answers_go_to_stdout(launch, report, capsys):
    assert (
        main(["plan", DEMO])
        == main(["config"])
        == main(["report", "runs/a"])
        == main(["summary", "a", "b"])
        == 0
    )
    out, err = capsys.readouterr()
    assert (
        out.startswith("run ")
        and f"sleep.steps = {Config().sleep.steps}" in out
        and out.endswith("runs/a/report.html\n2 runs\n")
    )
    assert err == "" and launch.calls == []


def test_module_prints_one_line_without_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sleep_rl", "run", DEMO, "replay.share=2"],
        cwd=tmp_path,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "sleep-rl: command line: replay.share: expected a number from 0 to 1, got 2\n"
    )


def test_closed_pipe_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sleep_rl", "config"],
        cwd=tmp_path,
        timeout=LIMIT_S,
        stdout=writer,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_commands_and_arguments(capsys):
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "Usage: sleep-rl" in out
    for name, command in cli.commands.items():
        assert f"\n  {name} " in out and command.callback is not None
        assert main([name, "--help"]) == 0
        assert f"Usage: sleep-rl {name} " in capsys.readouterr().out
