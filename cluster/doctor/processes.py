"""Run the doctor's checks with deadlines: in threads, or in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO

from cluster.doctor.finding import Finding
from sleep_rl.contracts.errors import one_line

TERMINATE_S = 15.0  # between SIGTERM and SIGKILL; Ray ends its own processes in it
KILL_S = 5.0


def with_deadline(
    seconds: float, name: str, check: Callable[[], Finding | list[Finding]]
) -> list[Finding]:
    """Return a check's findings, or one finding that it raised an exception or did not end within
    `seconds`: a file server that hangs must not block the other checks.
    """
    findings: list[Finding] = []

    def collect() -> None:
        try:
            result = check()
            findings.extend(result if isinstance(result, list) else [result])
        # Boundary: whatever a check raises, the others still run.
        except Exception as error:  # noqa: BLE001
            why = f"the check failed ({type(error).__name__}: {one_line(error)})"
            findings.append(Finding(name, False, why))

    thread = threading.Thread(target=collect, daemon=True, name=f"doctor {name}")
    thread.start()
    thread.join(seconds)
    if findings and not thread.is_alive():
        return list(findings)
    why = f"no answer within {seconds:g} s: does a file system or a name server hang?"
    return [Finding(name, False, why)]


def query_process(
    command: list[str], name: str, what: str, limit_s: float, environment: Mapping[str, str]
) -> tuple[dict | None, Finding | None]:
    """Run a command whose last output line is JSON; return (the JSON, None) or (None, a finding).

    `name`: of the finding; `what`: the package that the command imports; `limit_s`: its deadline.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        code = run_process(command, limit_s, environment, out)
        out.seek(0)
        lines = [line for line in out.read().splitlines() if line.strip()] or [""]
    if code == 0:
        with suppress(ValueError):
            return json.loads(lines[-1]), None
    why = f"exited with code {code}: {lines[-1]}"
    if code is None:
        why = f"did not end within {limit_s:g} s"
    advice = f"try {sys.executable} -c 'import {what.lower()}'"
    return None, Finding(name, False, f"{what} cannot be imported: its process {why}; {advice}")


def run_process(
    command: list[str], limit_s: float, environment: Mapping[str, str], out: IO[str]
) -> int | None:
    """Run a command with its output in `out`; return its exit code, None after `limit_s`.

    The process and its children are ended at the deadline, and on Ctrl-C.
    """
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            _end_group(process, signal.SIGTERM, TERMINATE_S)
            _end_group(process, signal.SIGKILL, KILL_S)


def _end_group(process: subprocess.Popen, number: int, timeout_s: float) -> None:
    """Send signal `number` to a process and its children, and wait for the process."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
