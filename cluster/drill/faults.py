"""Faults for `sleep-rl drill`, as they come upon a run from outside: signals, a limit on files, a
node that is cut off; and, in a driver of its own, one flipped byte in what is published.

    python -m cluster.drill.faults CONFIG [section.key=value ...]      # `sleep-rl run` with that
    flipped byte
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

PUSH = 2  # which push of the student is damaged
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""A head that misses a node within about 10 s, for a drill of seconds; Ray's own settings take a
minute.
"""


def worker(run_folder: Path, name: str) -> psutil.Process:
    """The process of a run's worker: the one on this machine that writes <run>/logs/<name>.log.
    Raises RunError.
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
    process.kill()


def freeze(process: psutil.Process) -> None:
    """Stops the process without ending it: to others it hangs."""
    process.suspend()


def no_more_disk(process: psutil.Process) -> None:
    """From now on no file of the process can grow: what a full disk does to it, without filling
    anybody's disk.
    """
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))


class FlippedByte(RayBackend):
    """Ray, except that one byte of one push is another one by the time it lies in the store."""

    struck = 0  # pushes of the student so far, over all restarts of the workers in this process

    def put(self, value: Any) -> Ref[Any]:
        if isinstance(value, Weights) and value.name == STUDENT and value.tensors:
            FlippedByte.struck += 1
            if FlippedByte.struck == PUSH:
                import torch

                key = min(value.tensors)
                damaged = value.tensors[key].clone()
                damaged.view(-1).view(torch.uint8)[0] ^= 1
                value = replace(value, tensors={**value.tensors, key: damaged})
        return super().put(value)


def flipped(config: Config, folder: Path) -> RayBackend:
    c = config.cluster
    return FlippedByte(c.address, c.start_timeout_s, c.call_timeout_s, log_dir=str(folder / "logs"))


class TwoNodes:
    """A Ray cluster of two nodes on this machine: the head, and one that can be cut off and
    replaced. With `jobs` the head has a job server, at `self.jobs`.
    """

    def __init__(self, head_cpus: float, node_cpus: float, jobs: bool = False) -> None:
        self.address, self.jobs = (
            f"127.0.0.1:{_free_port()}",
            f"http://127.0.0.1:{_free_port()}" if jobs else "",
        )
        # who joins needs it
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # a job's `python` is ours
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # Unix sockets inside: at most 107 bytes
        self._folder = tempfile.mkdtemp(prefix="drill", dir="/tmp")
        self._node_cpus, self._cut, self._nodes, self._started = node_cpus, [], [], 0
        try:
            self._start(
                "--head",
                f"--port={self.address.split(':')[1]}",
                f"--include-dashboard={str(jobs).lower()}",
                *([f"--dashboard-port={self.jobs.rpartition(':')[2]}"] if jobs else []),
                f"--temp-dir={self._folder}",
                f"--system-config={json.dumps(HEALTH)}",
                cpus=head_cpus,
            )
            self.join()
        except BaseException:
            self.close()
            raise

    def join(self) -> None:
        """Starts the second node, or one in the place of the one that was cut off."""
        self._start(f"--address={self.address}", cpus=self._node_cpus)

    def cut(self, harm: Callable[[psutil.Process], None] = freeze) -> None:
        """The second node answers no more, neither the head nor the driver; with `freeze` nothing
        of it has ended.
        """
        node = self._nodes.pop()
        self._cut = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in self._cut:
            harm(process)

    def close(self) -> None:
        """Ends both nodes and what was cut off."""
        for node in self._nodes:
            with suppress(psutil.NoSuchProcess):
                self._cut += psutil.Process(node.pid).children(recursive=True)
            node.send_signal(signal.SIGTERM)  # `ray start --block` ends what it started
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
        for process in self._cut:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str, cpus: float, limit_s: float = 600.0) -> None:
        """Starts a node and waits until Ray says that it runs. Raises RunError."""
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *arguments,
            "--block",
            "--num-gpus=0",
            f"--num-cpus={cpus:g}",
            "--node-ip-address=127.0.0.1",
            "--disable-usage-stats",
            f"--dashboard-agent-listen-port={_free_port()}",
        ]
        log, deadline = Path(self._folder) / f"node-{self._started}.log", time.monotonic() + limit_s
        self._started += 1
        with open(log, "wb") as file:
            self._nodes.append(
                subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    env={**self.environment, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
                )
            )
        while "Ray runtime started" not in (said := log.read_text(errors="replace")):
            if time.monotonic() > deadline or self._nodes[-1].poll() is not None:
                raise RunError(
                    f"drill: no Ray node within {limit_s:g} s: "
                    f"{(said.strip().splitlines() or ['nothing said'])[-1]}"
                )
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(run(load(sys.argv[1], sys.argv[2:]), flipped))
