"""Command lines and processes that tests start, and the fields of records that may differ."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

from tests.fakes.sources import ROOT

LIMIT_S = 3600
"""Timeout of tests in seconds, which only a hang exceeds, also on a loaded machine."""
DIFFERENT = (
    "t",
    "commit",
    "seconds",
    "started",
    "tokens_per_second",
    "bytes",
    "tensors",
    "config",
    "pause",
    "learner_idle",
    "trained_s",
    "learner_waited_s",
    "rollouts_waited_s",
    "rewards_s",
)
"""Journal fields in which equal runs may differ: times, and the size of a push, which depends on
what the workers hold. The run's name is in its config.
"""


SMALL = (
    "run.cache=cache",
    "model.chunks=[1,2]",
    "model.experts=2",
    "rollouts.workers=1",
    "baselines.run=[sft,joint]",
    "baselines.steps={sft: 2, joint: 2}",
    "rehearsal.samples=8",
    "sleep.steps=6",
    "run.checkpoint_steps=2",
)


def command(*arguments):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "OMP_", "TORCHDYNAMO"))
    }
    return {
        "args": [sys.executable, "-m", "sleep_rl", *arguments],
        "cwd": ROOT,
        "env": environment,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }


def start(folder, name, backend):
    return command(
        "run",
        "configs/debug.yaml",
        f"run.dir={folder}",
        f"run.name={name}",
        f"cluster.backend={backend}",
        *SMALL,
    )


def until(condition, process=None):
    """Return the value of `condition` when it is true, while `process` runs."""
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        ended = process is not None and process.poll() is not None
        assert not ended or condition(), process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)
    return value


def has_lines(journal, count):
    return journal.is_file() and journal.read_bytes().count(b"\n") >= count


def kill_after(process, journal, count):
    """Send SIGKILL to the driver when its journal has `count` lines."""
    until(lambda: has_lines(journal, count), process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def kill_worker(handle):
    """Kill the process of a worker, and return when it is gone: a call that follows Ray's own
    `kill` may still be answered.
    """
    process = psutil.Process(handle.pid())
    process.kill()
    process.wait(LIMIT_S)


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or a zombie because its parent does not wait for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def as_at_a_terminal() -> None:
    """Reset signal handlers, for `preexec_fn`: background processes of a script, or of nohup,
    ignore them.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
