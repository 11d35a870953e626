"""The record of a run: last journal record and report, also of a failed run; its W&B sink."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.tracking.sink import WandbSink
from sleep_rl.config.loader import dump
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.journal import Journal, read
from sleep_rl.report.page import write_report
from sleep_rl.runs.git import commit
from sleep_rl.session.console import Console

JOURNAL = "metrics.jsonl"


@contextmanager
def recorded(journal: Journal, folder: Path, console: Console) -> Iterator[None]:
    """Write the last journal record and the report when the block ends, also by an error, which is
    raised again.
    """
    started = time.time()
    exit_on_sigterm()
    try:
        yield
    except BaseException as error:
        # a full disk may be the cause; then the record cannot be written either
        with suppress(RunError):
            _end(journal, folder, console, time.time() - started, "failed", _reason(error))
        raise
    _end(journal, folder, console, time.time() - started, "ok", None)


def _end(
    journal: Journal,
    folder: Path,
    console: Console,
    seconds: float,
    status: str,
    reason: str | None,
) -> None:
    journal.log("done", seconds=seconds, status=status, reason=reason)
    journal.close()
    console.say(str(write_report(folder)))


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "ended by SIGTERM" if error.code == signal.SIGTERM else f"exit {error.code}"
    return str(error) or type(error).__name__


def exit_on_sigterm() -> None:
    """Install a handler that raises SystemExit on SIGTERM, so that a run which a job server stops
    still writes its record and report.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def is_complete(folder: Path, nights: int) -> bool:
    """Return whether the last process of a run ended with status ok, after `nights` nights."""
    if not (folder / JOURNAL).is_file():
        return False
    ends = [record for record in read(folder / JOURNAL) if record["kind"] == "done"]
    if not ends or ends[-1]["status"] != "ok":
        return False
    return (folder / "memory" / f"night-{nights}").is_dir()


def wandb_sink(config: Config, folder: Path, run_id: str) -> WandbSink:
    """Return the W&B sink that a config asks for, for the run in `folder`."""
    return WandbSink(
        config.wandb.project,
        config.wandb.mode,
        dir=folder,
        config=dump(config),
        name=folder.name,
        group=config.wandb.group,
        run_id=run_id,
        commit=commit(),
        artifacts=config.wandb.artifacts,
    )
