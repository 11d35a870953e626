"""Weights & Biases as a sink of the journal, through a process of its own: cluster.tracking.client.

No failure of W&B (no key, no network, no package, a full disk, a server that hangs) stops or blocks
a run: only `close` waits for it, with a deadline. A failure is raised once, and the journal records
it once.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from sleep_rl.config.secrets import without_secrets
from sleep_rl.journal.journal import Record

ROOT = Path(__file__).parents[2]
LOG = "wandb.log"  # in the run's logs: the client's output


class WandbSink:
    """Sends journal records to W&B. Mode "offline" needs no key; `wandb sync` uploads its files
    later.

    `failed`: why the client could not be started; empty if it was.
    """

    name = "W&B"

    def __init__(
        self,
        project: str,
        mode: Literal["online", "offline"],
        *,
        dir: str | Path,
        config: Mapping[str, Any],
        name: str | None = None,
        group: str | None = None,
        run_id: str | None = None,
        commit: str | None = None,
        artifacts: bool = False,
        start_seconds: float = 60.0,
        stall_seconds: float = 120.0,
        close_seconds: float = 120.0,
    ) -> None:
        """Start the client.

        `dir`: of the run; `config`: logged without secrets; `run_id`: W&B's, to continue a run;
        `artifacts`: upload each night's memory. Timeouts: `start_seconds` of wandb.init,
        `stall_seconds` of the client's next read (its start included), `close_seconds` of `close`.
        """
        self.failed = ""
        self._stall_s = stall_seconds
        self._close_s = close_seconds
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._write_started: float | None = None  # time of the write in progress
        self._exited = threading.Event()  # the client's process has ended
        self._reason = ""  # why the client failed
        self._finished = False  # whether the client finished the W&B run
        self._status = 1  # the W&B run's exit code
        self._wandb_folder = str(Path(dir) / "wandb")
        options = {
            "project": project,
            "mode": mode,
            "dir": str(dir),
            "name": name,
            "group": group,
            "run_id": run_id,
            "commit": commit,
            "config": without_secrets(config),
            "artifacts": artifacts,
            "start_seconds": start_seconds,
            "close_seconds": close_seconds,
        }
        self._log = Path(dir) / "logs" / LOG
        try:
            self._process = _start_client(Path(dir), self._log)
        except OSError as error:
            self.failed = f"could not start: {error.strerror or error}: {error.filename}"
            return
        self._lines.put(json.dumps(options))
        for task in (self._write, self._read):
            threading.Thread(target=task, name=f"wandb{task.__name__}", daemon=True).start()

    def recall(self, records: list[Record]) -> None:
        """Continue the curves after these records of a resumed run."""
        self._send("recall", records)

    def log(self, record: Record) -> None:
        """Send a record. Raises ConnectionError or TimeoutError for a failure since the last
        call.
        """
        if record["kind"] == "done":
            self._status = 0 if record["status"] == "ok" else 1
        self._send("log", record)

    def close(self) -> None:
        """Finish the W&B run. Raises ConnectionError for a failure of the client, and TimeoutError
        after `close_seconds`; W&B's files stay.
        """
        self._send("end", self._status)
        self._exited.wait(self._close_s)
        if self._finished:
            self._process.wait()
            return
        self._kill()
        if self._reason:
            raise ConnectionError(self._reason)
        raise TimeoutError(
            f"not finished after {self._close_s:g} s; `wandb sync {self._wandb_folder}` uploads "
            "the rest"
        )

    def _send(self, method: str, content: Any) -> None:
        started = self._write_started
        waited_s = 0.0 if started is None else time.monotonic() - started
        if not self._exited.is_set() and waited_s < self._stall_s:
            self._lines.put(json.dumps([method, content]))
            return
        self._kill()
        if not self._reason:
            raise TimeoutError(f"its client read nothing for {waited_s:.0f} s (see {self._log})")
        raise ConnectionError(self._reason)

    def _write(self) -> None:
        """Write the queued lines to the client, in a thread of its own."""
        with suppress(OSError, ValueError):  # the client has ended: the other thread finds out why
            while (line := self._lines.get()) is not None:
                self._write_started = time.monotonic()
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
                self._write_started = None

    def _read(self) -> None:
        """Read the client's responses until it ends, in a thread of its own."""
        for line in self._process.stdout:
            response = json.loads(line)
            self._wandb_folder = response.get("ready", self._wandb_folder)
            self._finished = "ended" in response
            self._reason = self._reason or response.get("failed", "")
        code = self._process.wait()
        if not self._finished and not self._reason:
            self._reason = f"its client ended with exit code {code} (see {self._log})"
        self._exited.set()

    def _kill(self) -> None:
        """Kill the client and its child processes."""
        self._lines.put(None)
        with suppress(psutil.NoSuchProcess):
            client = psutil.Process(self._process.pid)
            for process in [*client.children(recursive=True), client]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()


def _start_client(folder: Path, log: Path) -> subprocess.Popen[str]:
    """Start the client of the run in `folder`, with its output in `log`. Raises OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    (folder / "wandb").mkdir(exist_ok=True)  # otherwise wandb writes to /tmp instead
    # tables and artifacts until they are uploaded
    data = (folder / "wandb" / "data").absolute()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DATA_DIR": str(data),
        **os.environ,
        "PYTHONPATH": path,
    }
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.tracking.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C must end the run only
        )
