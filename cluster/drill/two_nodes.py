"""A Ray cluster of two nodes on one machine, one of which can be cut off and replaced."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.drill.faults import freeze
from cluster.runtime.ports import reserve_port
from sleep_rl.contracts.errors import RunError

LOOPBACK = "127.0.0.1"
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""Ray's settings with which the head detects a dead node within 10 s instead of a minute."""


class TwoNodes:
    """A Ray cluster on this machine: the head, and one more node that can be cut off and replaced.

    `address`: of the cluster; `jobs`: of its job server, empty without one; `environment`:
    variables of a process that connects, with the cluster's token.
    """

    def __init__(self, head_cpus: float, node_cpus: float, jobs: bool = False) -> None:
        """Start both nodes. `jobs`: with a job server on the head."""
        # reserved until the nodes end: Ray listens on them seconds later
        self._reserved = [reserve_port(LOOPBACK) for _ in range(3)]
        ports = [reserved.getsockname()[1] for reserved in self._reserved]
        port, dashboard_port, client_port = ports
        self.address = f"{LOOPBACK}:{port}"
        self.jobs = f"http://{LOOPBACK}:{dashboard_port}" if jobs else ""
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # a job's `python` is this one
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # short: the paths of Unix sockets inside have at most 107 bytes
        self._folder = tempfile.mkdtemp(prefix="drill", dir="/tmp")
        self._node_cpus = node_cpus
        self._cut: list[psutil.Process] = []
        self._nodes: list[subprocess.Popen] = []
        self._started = 0
        try:
            self._start(
                "--head",
                f"--port={port}",
                f"--include-dashboard={str(jobs).lower()}",
                f"--dashboard-port={dashboard_port}",
                f"--ray-client-server-port={client_port}",
                f"--temp-dir={self._folder}",
                f"--system-config={json.dumps(HEALTH)}",
                cpus=head_cpus,
            )
            self.join()
        except BaseException:
            self.close()
            raise

    def join(self) -> None:
        """Start the second node, or a replacement of the one that was cut off."""
        self._start(f"--address={self.address}", cpus=self._node_cpus)

    def cut(self, fault: Callable[[psutil.Process], None] = freeze) -> None:
        """Apply `fault` to all processes of the second node, so that it answers neither the head
        nor the driver. With `freeze` they stay alive.
        """
        node = self._nodes.pop()
        self._cut = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in self._cut:
            fault(process)

    def close(self) -> None:
        """End both nodes and the processes of one that was cut off."""
        for node in self._nodes:
            with suppress(psutil.NoSuchProcess):
                self._cut += psutil.Process(node.pid).children(recursive=True)
            node.send_signal(signal.SIGTERM)  # `ray start --block` ends its processes
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
        for process in self._cut:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for reserved in self._reserved:
            reserved.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str, cpus: float, limit_s: float = 600.0) -> None:
        """Start a node and wait until it runs. Raises RunError after `limit_s`, or when it
        exits.
        """
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *arguments,
            "--block",
            "--num-gpus=0",
            f"--num-cpus={cpus:g}",
            f"--node-ip-address={LOOPBACK}",
            "--disable-usage-stats",
            "--dashboard-agent-listen-port=0",  # any that is free
        ]
        log = Path(self._folder) / f"node-{self._started}.log"
        deadline = time.monotonic() + limit_s
        self._started += 1
        environment = {**self.environment, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        with open(log, "wb") as file:
            self._nodes.append(
                subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
            )
        while "Ray runtime started" not in (text := log.read_text(errors="replace")):
            if time.monotonic() > deadline or self._nodes[-1].poll() is not None:
                lines = text.strip().splitlines() or ["no output"]
                raise RunError(f"drill: no Ray node within {limit_s:g} s: {lines[-1]}")
            time.sleep(0.2)
