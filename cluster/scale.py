"""Add and remove rollout workers during a run (`sleep-rl scale RUN rollouts=N`).

A new worker starts in the background, loads and verifies the newest version of every state, and
joins the pool; one that leaves completes its call first. No process group is rebuilt: rollout
workers share none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.runtime.backend import Backend
from cluster.runtime.handle import Handle, Pending
from cluster.runtime.pool import Pool
from cluster.weights import WeightStore
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.roles import Rollout
from sleep_rl.files import write_atomically
from sleep_rl.journal.journal import Journal
from sleep_rl.runs.run_dir import FILE as RUN
from sleep_rl.runs.run_dir import LOCK, held

FILE = "scale.json"


def request(folder: Path, text: str) -> int:
    """Write the request `rollouts=N` into the folder of a live run, and return N.

    The run's driver reads it before every push. Raises InputError for any other `text`, and for a
    folder whose run has no process.
    """
    name, _, number = text.partition("=")
    if name != "rollouts" or not number.isdigit() or int(number) < 1:
        raise InputError(f"scale: rollouts=N with N at least 1, got {text}")
    if not os.path.isfile(folder / RUN):
        raise InputError(f"{folder}: expected the folder of a run with {RUN}")
    if not held(folder):
        raise InputError(
            f"{folder}: this run has no process ({LOCK}); sleep-rl resume {folder} "
            f"rollouts.workers={number} resumes it with as many"
        )
    write_atomically(folder / FILE, json.dumps({"rollouts": int(number)}).encode())
    return int(number)


def requested(folder: Path) -> int | None:
    """Return the number of rollout workers that was requested last, or None."""
    try:
        return int(json.loads((folder / FILE).read_text())["rollouts"])
    except FileNotFoundError:
        return None


class Scaler:
    """Starts and ends rollout workers until their number is the requested one."""

    def __init__(
        self,
        backend: Backend,
        pool: Pool,
        store: WeightStore,
        journal: Journal,
        spawn: Callable[[int], Handle],
        check: Callable[[int], None],
    ) -> None:
        """Create a scaler of `pool`. `spawn(i)` starts the worker rollout-<i>; `check(n)` raises
        InputError when the nodes cannot run n workers.
        """
        self._backend = backend
        self._pool = pool
        self._store = store
        self._journal = journal
        self._spawn = spawn
        self._check = check
        self._next = len(pool.workers)  # number of the next new worker
        self._target = len(pool.workers)
        self._joining: dict[str, tuple[Handle, float]] = {}  # and when each was started
        self._leaving: list[tuple[Handle, Pending[None]]] = []

    def step(self, count: int | None) -> None:
        """Set a new target (None: keep it), add workers that are ready to the pool, and kill those
        that have closed. Does not wait for a worker's start.
        """
        with self._pool.lock:
            if count is not None and count != self._target:
                self._set_target(count)
            self._add_ready()
            self._end_closed()

    def _add_ready(self) -> None:
        limit_s = self._backend.start_timeout_s
        for name, (handle, started) in list(self._joining.items()):
            if handle.built():
                del self._joining[name]
                self._join(handle)
            elif time.monotonic() - started > limit_s:
                del self._joining[name]
                self._abandon(handle, f"did not start within {limit_s:g} s")

    def _end_closed(self) -> None:
        for handle, closing in list(self._leaving):
            if closing.ready(0):
                self._leaving.remove((handle, closing))
                handle.kill()

    def _set_target(self, count: int) -> None:
        """Start missing workers, or end surplus ones: first those that are still starting."""
        self._target = count
        try:
            self._check(count)
        except InputError as error:  # recorded once per request
            self._journal.log("failure", where="scale", reason=str(error), count=1)
            return
        surplus = len(self._pool.workers) + len(self._joining) - count
        for _ in range(-surplus):
            handle = self._spawn(self._next)
            self._next += 1
            self._joining[handle.name] = (handle, time.monotonic())
        for name in list(self._joining)[: max(surplus, 0)]:
            handle, _ = self._joining.pop(name)
            handle.kill()
            surplus -= 1
        for handle in self._pool.remove(max(surplus, 0)):
            # queued behind the worker's current call
            self._leaving.append((handle, handle.start(Rollout.close)))
            self._record(handle, joined=False)

    def _join(self, handle: Handle) -> None:
        try:
            handle.ready()
            self._store.refill([handle])
        except (InputError, RunError) as error:  # the run continues with its present workers
            self._abandon(handle, str(error))
            return
        self._pool.add(handle)
        self._record(handle, joined=True)

    def _record(self, handle: Handle, joined: bool) -> None:
        workers = len(self._pool.workers)
        self._journal.log("scaled", worker=handle.name, joined=joined, workers=workers)

    def _abandon(self, handle: Handle, reason: str) -> None:
        self._journal.log("failure", where=handle.name, reason=reason, count=1)
        with suppress(RunError):
            handle.kill()
