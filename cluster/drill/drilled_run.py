"""One run of a drill: a process, its journal, and its outcome."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import Record, read

LIMIT_S = 1800.0  # of one run
Outcome = tuple[dict[str, bytes], dict]
"""(night -> bytes of its memory, row of the last evaluation)."""


class DrilledRun:
    """A run of the drill in a process of its own; its state is read from its journal."""

    def __init__(
        self,
        name: str,
        path: str,
        overrides: list[str],
        home: Path,
        *,
        flipped: bool = False,
        environment: dict[str, str] | None = None,
    ):
        """Start the run `name` in the folder `home`.

        `path`, `overrides`: its config; `flipped`: one byte of a push is flipped (see
        faults.FlippedByte); `environment`: of its process; None: this one's.
        """
        self.name = name
        self.folder = home / name
        self._environment = environment
        command = ["cluster.drill.faults"] if flipped else ["sleep_rl", "run"]
        keys = [f"run.dir={home}", f"run.name={name}"]
        self.output = home / f"{name}.txt"
        self.process = self._start(["-m", *command, path, *overrides, *keys])

    def _start(self, arguments: list[str]) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
        )
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        return process

    def _read(self, process: subprocess.Popen) -> None:
        """Copy the run's output from a pipe into a file, in a thread of its own. The run itself may
        be unable to write files (faults.no_more_disk).
        """
        with open(self.output, "ab") as file:
            while part := process.stdout.read1():
                file.write(part)
                file.flush()

    def records(self) -> list[Record]:
        """Return the journal's records so far."""
        journal = self.folder / "metrics.jsonl"
        return read(journal) if journal.is_file() else []

    def until(self, condition: Callable[[list[Record]], bool]) -> bool:
        """Wait until the journal fulfils a condition; return False when the run ends first. Raises
        RunError after LIMIT_S.
        """
        deadline = time.monotonic() + LIMIT_S
        while not condition(self.records()):
            if self.process.poll() is not None:
                return condition(self.records())
            if time.monotonic() > deadline:
                self.end()
                raise RunError(
                    f"drill: {self.folder} did not end within {LIMIT_S:g} s; its output: "
                    f"{self.output}"
                )
            time.sleep(0.1)
        return True

    def wait(self) -> int | None:
        """Return the exit code; None for a run that was ended after LIMIT_S."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.end()
            return None

    def resume(self) -> None:
        """Resume the run in a new process."""
        self.process = self._start(["-m", "sleep_rl", "resume", str(self.folder)])

    def end(self) -> None:
        """End the run's process if it is alive."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def last_line(self) -> str:
        """Return the last line of the run's output."""
        self._reader.join(10)
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def outcome(self) -> Outcome:
        """Return (night -> bytes of its memory, row of the last evaluation of sleep)."""
        memories = {
            path.parent.name: path.read_bytes()
            for path in sorted(self.folder.glob("memory/*/memory.safetensors"))
        }
        rows = [
            r["row"]
            for r in self.records()
            if r["kind"] == "evaluate" and r["method"] == "sleep" and r["row"]
        ]
        return memories, rows[-1] if rows else {}
