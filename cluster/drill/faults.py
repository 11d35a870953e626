"""Faults for `sleep-rl drill`: signals and limits for a process from outside, and a driver that
flips one byte of a push.

    # `sleep-rl run` with the flipped byte
    python -m cluster.drill.faults CONFIG [section.key=value ...]
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cluster.launch import run
from cluster.runtime.handle import Ref
from cluster.runtime.ray_backend import RayBackend
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT, Weights

PUSH = 2  # number of the student's push that is damaged


def worker(run_folder: Path, name: str) -> psutil.Process:
    """Return the process of the worker `name`: the one on this machine that has
    <run_folder>/logs/<name>.log open. Raises RunError when there is none.
    """
    log = str((run_folder / "logs" / f"{name}.log").resolve())
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("ray::") and any(
                file.path == log for file in process.open_files()
            ):
                return process
    raise RunError(f"drill: no process on this machine writes {log}")


def kill(process: psutil.Process) -> None:
    """Send SIGKILL."""
    process.kill()


def freeze(process: psutil.Process) -> None:
    """Send SIGSTOP: the process hangs."""
    process.suspend()


def no_more_disk(process: psutil.Process) -> None:
    """Set RLIMIT_FSIZE to 0, so that no file of the process can grow, as on a full disk."""
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))


class FlippedByte(RayBackend):
    """A RayBackend that flips one byte of push number PUSH before it is stored."""

    pushes = 0  # of the student so far; restarts of the workers do not reset it

    def put(self, value: Any) -> Ref[Any]:
        if isinstance(value, Weights) and value.name == STUDENT and value.tensors:
            FlippedByte.pushes += 1
            if FlippedByte.pushes == PUSH:
                import torch

                key = min(value.tensors)
                damaged = value.tensors[key].clone()
                damaged.view(-1).view(torch.uint8)[0] ^= 1
                value = replace(value, tensors={**value.tensors, key: damaged})
        return super().put(value)


def flipped(config: Config, folder: Path) -> RayBackend:
    """Return a FlippedByte backend; for RunSetup.make_backend."""
    cluster = config.cluster
    return FlippedByte(
        cluster.address,
        cluster.start_timeout_s,
        cluster.call_timeout_s,
        log_dir=str(folder / "logs"),
    )


if __name__ == "__main__":
    sys.exit(run(load(sys.argv[1], sys.argv[2:]), flipped))
