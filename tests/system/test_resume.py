"""A real run that is killed (SIGKILL) and resumed gives the same bytes and records as an
uninterrupted one.
"""

import os
import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from cluster import run_record
from sleep_rl.journal.journal import Journal, read
from sleep_rl.session.console import Console
from sleep_rl.session.stage_files import newest
from tests.fakes.processes import DIFFERENT, LIMIT_S, command, has_lines, kill_after, start, until

ROOT = Path(__file__).parents[2]


def lines(folder):
    return [
        {k: v for k, v in record.items() if k not in DIFFERENT}
        for record in read(folder / "metrics.jsonl")
    ]


def memories(folder):
    return {
        path.parent.name: path.read_bytes()
        for path in sorted(folder.glob("memory/*/memory.safetensors"))
    }


def check(tmp_path, backend, points):
    done = subprocess.run(**start(tmp_path, "whole", backend), timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout
    total = len(lines(tmp_path / "whole"))
    for number, share in enumerate(points):
        at = max(1, int(share * total))
        folder = tmp_path / f"cut{number}"
        kill_after(
            subprocess.Popen(**start(tmp_path, folder.name, backend)), folder / "metrics.jsonl", at
        )
        again = subprocess.run(**command("resume", str(folder)), timeout=LIMIT_S)
        assert again.returncode == 0, again.stdout
        assert lines(folder) == lines(tmp_path / "whole"), f"killed after line {at} of {total}"
        assert memories(folder) == memories(tmp_path / "whole"), (
            f"killed after line {at} of {total}"
        )
    again = subprocess.run(**command("resume", str(folder)), timeout=LIMIT_S)
    assert again.returncode == 0 and "this run is complete; nothing to do" in again.stdout


@pytest.mark.stack
def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    check(tmp_path, "local", [0.6])


@pytest.mark.slow
@pytest.mark.stack
def test_twenty_kills_in_one_process(tmp_path):
    rng = random.Random(20)
    check(tmp_path, "local", [rng.uniform(0.02, 0.98) for _ in range(20)])


@pytest.mark.slow
@pytest.mark.stack
def test_killed_run_on_ray_resumes_to_the_same_bytes(tmp_path):
    check(tmp_path, "ray", [0.5])
    assert (
        subprocess.run(**start(tmp_path, "one-process", "local"), timeout=LIMIT_S).returncode == 0
    )
    assert memories(tmp_path / "one-process") == memories(tmp_path / "whole")
    assert lines(tmp_path / "one-process") == lines(tmp_path / "whole")


def worker_of(run, name):
    """Return the process whose output is in <run>/logs/<name>.log."""
    log = str((run / "logs" / f"{name}.log").resolve())
    for process in psutil.process_iter():
        try:
            if process.name().startswith("ray::") and any(
                file.path == log for file in process.open_files()
            ):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"no process writes {log}")


@pytest.mark.slow
@pytest.mark.stack
def test_run_continues_after_deaths_of_workers(tmp_path):
    whole = tmp_path / "whole"
    folder = tmp_path / "mortal"
    assert subprocess.run(**start(tmp_path, "whole", "ray"), timeout=LIMIT_S).returncode == 0
    total = len(lines(whole))
    process = subprocess.Popen(**start(tmp_path, "mortal", "ray"))
    for name, share in (("rollout-0", 0.3), ("learner-0", 0.6)):
        until(partial(has_lines, folder / "metrics.jsonl", share * total), process)
        worker_of(folder, name).kill()
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, printed
    restarted = [r["worker"] for r in lines(folder) if r["kind"] == "restarted"]
    assert (
        restarted
        and set(restarted) <= {"rollout-0", "all workers"}
        and restarted[-1] == "all workers"
    ), printed
    assert memories(folder) == memories(whole)
    assert [r for r in lines(folder) if r["kind"] == "evaluate"] == [
        r for r in lines(whole) if r["kind"] == "evaluate"
    ]


DREAMING = (
    "run.cache=cache",
    "task.world.deep=true",
    "task.days=1",
    "rollouts.workers=1",
    "dream.rounds=1",
    "dream.tasks=2",
    "dream.dreams_per_task=4",
    "dream.keep_top=3",
    "dream.keep_random=1",
    "dream.copies.seeds=1",
    "dream.copies.lr=5.0e-3",
    "dream.steps=4",
    "model.experts=3",
    "model.top_k=1",
)
STEPS = (
    "consolidate/1/0",
    "dream/1/1/generate",
    "dream/1/1/select",
    "dream/1/1/try_out",
    "dream/1/1/train_policy",
)
"""Stages, of which each is followed by one in which the driver is killed."""


def kill_behind(process, folder, stage):
    """Send SIGKILL to the driver during the stage after `stage`."""
    until(lambda: (found := newest(folder)) and found.stage == stage, process)
    process.send_signal(signal.SIGSTOP)  # nothing changes between the check and the kill
    assert newest(folder).stage == stage, "the next stage ended before it was seen"
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.stack
def test_run_killed_in_each_step_of_dreaming_resumes(tmp_path):
    arguments = ("configs/debug.yaml", f"run.dir={tmp_path}", "cluster.backend=local", *DREAMING)
    done = subprocess.run(**command("run", *arguments, "run.name=whole"), timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout
    whole = lines(tmp_path / "whole")
    folder = tmp_path / "cut"
    kinds = {record["kind"] for record in whole}
    assert {"tried", "dreamed", "policy"} <= kinds and any(
        r.get("reward") for r in whole if r["kind"] == "dream"
    )
    process = subprocess.Popen(**command("run", *arguments, "run.name=cut"))
    for stage in STEPS:
        kill_behind(process, folder, stage)
        process = subprocess.Popen(**command("resume", str(folder)))
    printed = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, printed
    assert lines(folder) == whole
    assert memories(folder) == memories(tmp_path / "whole")


def test_sigterm_ends_a_run_with_record_and_report(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    reports = []
    monkeypatch.setattr(run_record, "write_report", reports.append)
    try:
        with (
            pytest.raises(SystemExit) as error,
            run_record.recorded(Journal(tmp_path / "metrics.jsonl"), tmp_path, Console()),
        ):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
    finally:
        signal.signal(signal.SIGTERM, before)
    [last] = read(tmp_path / "metrics.jsonl")
    assert (last["kind"], last["status"], last["reason"]) == ("done", "failed", "ended by SIGTERM")
    assert error.value.code == signal.SIGTERM and reports == [tmp_path]


@pytest.mark.stack
def test_changed_keys_need_accept(tmp_path):
    folder = tmp_path / "life"
    kill_after(subprocess.Popen(**start(tmp_path, "life", "local")), folder / "metrics.jsonl", 3)
    refused = subprocess.run(**command("resume", str(folder), "sleep.lr=0.5"), timeout=LIMIT_S)
    assert refused.returncode == 2
    assert refused.stdout.splitlines()[-1].endswith(
        "sleep.lr changed since the run began; --accept sleep.lr resumes it anyway"
    )
    nowhere = subprocess.run(**command("resume", str(tmp_path / "none")), timeout=LIMIT_S)
    assert (
        nowhere.returncode == 2 and "expected the folder of a run with run.json" in nowhere.stdout
    )
