"""A Ray cluster of two nodes on one machine, of which one can be cut off."""

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
"""Ray's settings with which a head misses a node within about 10 s, instead of a minute."""


class TwoNodes:
    """A Ray cluster of two nodes on this machine: the head, and one that can be cut off and
    replaced.

    `address`: of the cluster; `jobs`: of its job server, empty without one; `environment`: with the
    token that whoever joins needs.
    """

    def __init__(self, head_cpus: float, node_cpus: float, jobs: bool = False) -> None:
        """Start both nodes. `jobs`: with a job server on the head."""
        # kept until the nodes end: Ray binds them beside these, seconds later
        self._held = [reserve_port(LOOPBACK) for _ in range(2)]
        port, dashboard_port = (held.getsockname()[1] for held in self._held)
        self.address = f"{LOOPBACK}:{port}"
        self.jobs = f"http://{LOOPBACK}:{dashboard_port}" if jobs else ""
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # a job's `python` is ours
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        # Unix sockets inside: at most 107 bytes
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
                f"--temp-dir={self._folder}",
                f"--system-config={json.dumps(HEALTH)}",
                cpus=head_cpus,
            )
            self.join()
        except BaseException:
            self.close()
            raise

    def join(self) -> None:
        """Start the second node, or one in the place of the one that was cut off."""
        self._start(f"--address={self.address}", cpus=self._node_cpus)

    def cut(self, harm: Callable[[psutil.Process], None] = freeze) -> None:
        """Harm all processes of the second node: it answers neither the head nor the driver any
        more. With `freeze` none of them ends.
        """
        node = self._nodes.pop()
        self._cut = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in self._cut:
            harm(process)

    def close(self) -> None:
        """End both nodes and what was cut off."""
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
        for held in self._held:
            held.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str, cpus: float, limit_s: float = 600.0) -> None:
        """Start a node and wait until Ray says that it runs. Raises RunError."""
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
                lines = text.strip().splitlines() or ["nothing said"]
                raise RunError(f"drill: no Ray node within {limit_s:g} s: {lines[-1]}")
            time.sleep(0.2)
