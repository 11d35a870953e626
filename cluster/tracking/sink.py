"""Weights & Biases as one sink of the journal, behind a process of its own, `client`.

Whatever W&B does (no key, no network, no package, a full disk, a server that hangs) never stops or
blocks a run: only `close` waits for it, and that with a deadline. What went wrong is raised once,
and the journal records it once.
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
LOG = "wandb.log"  # in the run's logs: what the client prints


class WandbSink:
    """Sends the journal to W&B. Mode "offline" needs no key; `wandb sync` uploads its files later.

    `failed`: why the client could not be started, else empty.
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

        `dir`: of the run; `run_id`: W&B's, to continue one; `start_seconds`: for W&B's own start;
        `stall_seconds`: how long the client may accept nothing, its start included;
        `close_seconds`: for the end.
        """
        self.failed = ""
        self._stall_s = stall_seconds
        self._close_s = close_seconds
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._since: float | None = None  # when the line that is being written was begun
        self._over = threading.Event()  # the client's process has ended
        self._reason = ""  # why it failed
        self._ended = False  # whether it finished the W&B run
        self._status = 1  # exit code for W&B
        self._where = str(Path(dir) / "wandb")
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
        """Continue the curves behind these records."""
        self._send("recall", records)

    def log(self, record: Record) -> None:
        """Send a record. Raises ConnectionError or TimeoutError for what went wrong since the last
        call.
        """
        if record["kind"] == "done":
            self._status = 0 if record["status"] == "ok" else 1
        self._send("log", record)

    def close(self) -> None:
        """Finish the W&B run. Raises TimeoutError when that takes too long; its files stay."""
        self._send("end", self._status)
        self._over.wait(self._close_s)
        if self._ended:
            self._process.wait()  # it has nothing more to do
            return
        self._end()
        if self._reason:
            raise ConnectionError(self._reason)
        raise TimeoutError(
            f"no end after {self._close_s:g} s; `wandb sync {self._where}` uploads the rest"
        )

    def _send(self, verb: str, content: Any) -> None:
        since = self._since
        waited_s = 0.0 if since is None else time.monotonic() - since
        if not self._over.is_set() and waited_s < self._stall_s:
            self._lines.put(json.dumps([verb, content]))
            return
        self._end()
        if not self._reason:
            raise TimeoutError(f"its client took nothing for {waited_s:.0f} s (see {self._log})")
        raise ConnectionError(self._reason)

    def _write(self) -> None:
        """Thread: write the lines to the client, one by one."""
        with suppress(OSError, ValueError):  # the client is gone: the other thread says why
            while (line := self._lines.get()) is not None:
                self._since = time.monotonic()
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
                self._since = None

    def _read(self) -> None:
        """Thread: read the answers, until the client ends."""
        for line in self._process.stdout:
            answer = json.loads(line)
            self._where = answer.get("ready", self._where)
            self._ended = "ended" in answer
            self._reason = self._reason or answer.get("failed", "")
        code = self._process.wait()
        if not self._ended and not self._reason:
            self._reason = f"its client ended with exit code {code} (see {self._log})"
        self._over.set()

    def _end(self) -> None:
        """End the client and all that it started, at once."""
        self._lines.put(None)
        with suppress(psutil.NoSuchProcess):
            client = psutil.Process(self._process.pid)
            for process in [*client.children(recursive=True), client]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()


def _start_client(folder: Path, log: Path) -> subprocess.Popen[str]:
    """Start the client for the run in `folder`; what it prints goes into `log`. Raises OSError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    (folder / "wandb").mkdir(exist_ok=True)  # wandb would quietly move to /tmp instead
    # what tables and artifacts hold until they are sent
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
            start_new_session=True,  # Ctrl-C is for the run alone
        )
