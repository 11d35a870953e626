"""Weights & Biases as one sink of the journal. The only module that imports wandb, and only when a sink is made.

Whatever W&B does (no key, no network, no package, a dead server at the end) never stops or blocks a run: a sink that
cannot start says why in `failed`, which the journal records once.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sleep_rl.metrics import Record, without_secrets

AXES = ("seed", "wake", "evaluate", "sample", "push", "night", "baseline")
"""Kinds with curves. Each has its own x axis `<kind>/record`: steps start anew every night, so they cannot be one."""


class WandbSink:
    """Sends the numbers of the journal to W&B. `offline` needs no key; `wandb sync` uploads its files later."""

    name = "W&B"

    def __init__(self, project: str, mode: Literal["online", "offline"], *, dir: str | Path, config: Mapping[str, Any],
                 name: str | None = None, group: str | None = None, run_id: str | None = None,
                 start_seconds: float = 30.0, close_seconds: float = 60.0) -> None:
        self.failed = ""
        self._close_seconds = close_seconds
        self._numbers: Counter[str] = Counter()  # records so far, per kind
        self._failures = 0
        self._run: Any = None
        try:
            Path(dir).mkdir(parents=True, exist_ok=True)  # wandb would quietly move to /tmp instead
            self._run = _start(mode, start_seconds, close_seconds, project=project, dir=str(dir), name=name,
                               group=group, id=run_id, resume="allow" if run_id else None,
                               config=without_secrets(config))
        except Exception as error:  # wandb raises many types; every one means "no W&B in this run"
            self.failed = f"could not start: {type(error).__name__}: {error}"

    def log(self, record: Record) -> None:
        """Curves for the kinds in AXES; the newest retention row, failures and the end of the run go to the summary."""
        kind = record["kind"]
        if kind in AXES:
            self._numbers[kind] += 1
            values = _numbers(record) | {"record": self._numbers[kind]}
            self._run.log({f"{kind}/{name}": value for name, value in values.items()})
        if kind == "evaluate" and record["after"] != "base" and record["row"]:
            row = {f"retention/{record['method']}/{c}": v for c, v in record["row"].items() if v is not None}
            self._run.summary.update(row | {f"retention/{record['method']}/after": record["after"]})
        elif kind == "failure":
            self._failures += record.get("count", 1)
            self._run.summary["failures"] = self._failures
        elif kind == "done":
            end = {name: record[name] for name in ("seconds", "status", "reason") if record.get(name) is not None}
            self._run.summary.update({f"done/{name}": value for name, value in end.items()})

    def close(self) -> None:
        """Finishes the W&B run. Raises TimeoutError when the server does not answer in time; the data stays on disk."""
        if self._run is None:
            return
        run, self._run = self._run, None
        errors: list[Exception] = []

        def finish() -> None:
            try:
                run.finish()
            except Exception as error:  # handed to the caller's thread below
                errors.append(error)

        # wandb's own finish_timeout bounds the upload; the thread also bounds a client that hangs. A daemon must not
        # keep the interpreter alive.
        thread = threading.Thread(target=finish, name="wandb-finish", daemon=True)
        thread.start()
        thread.join(self._close_seconds)
        if thread.is_alive():
            where = Path(run.dir).parent
            raise TimeoutError(f"no end after {self._close_seconds:g} s; `wandb sync {where}` uploads the rest")
        if errors:
            raise errors[0]


def _start(mode: str, start_seconds: float, close_seconds: float, **init: Any) -> Any:
    """A started wandb run, silent, with one x axis per kind."""
    import wandb

    settings = wandb.Settings(
        silent=True, console="off",  # our console owns the terminal
        disable_code=True, disable_git=True, x_disable_meta=True,  # command line and source may hold secrets
        init_timeout=start_seconds, finish_timeout=close_seconds,
    )
    wandb.setup(settings=wandb.Settings(silent=True))
    if mode == "online" and os.environ.get("WANDB_MODE") == "offline":
        mode = "offline"  # the environment may hold a run back, e.g. on a node without network
    if mode == "online" and not wandb.login(prompt=False, verify=False):  # init would ask on the terminal and wait
        raise RuntimeError("no API key: set WANDB_API_KEY, run `wandb login`, or use mode offline")
    run = wandb.init(mode=mode, settings=settings, **init)
    for kind in AXES:
        run.define_metric(f"{kind}/record", hidden=True)
        run.define_metric(f"{kind}/*", step_metric=f"{kind}/record")
    return run


def _numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name; those of `row` and `open_book` by method and column."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if name == "row":
            numbers |= {f"{record['method']}/{column}": v for column, v in value.items() if v is not None}
        elif name == "open_book":
            numbers |= {f"open_book/{column}": v for column, v in (value or {}).items() if v is not None}
        elif name != "t" and isinstance(value, (int, float)):
            numbers[name] = value
    return numbers
