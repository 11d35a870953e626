"""Rollout workers that join and leave during a run (`sleep-rl scale RUN rollouts=N`).

A new worker starts in the background, is filled with the newest version of every state, verified,
and joins; one that leaves ends its call first. No process group is rebuilt: rollout workers do not
know of one another.
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


def ask(folder: Path, request: str) -> int:
    """Leave the request `rollouts=N` in the folder of a run that is under way, and return N.

    The run's driver looks there after every round. Raises InputError for another request, and for a
    folder without a running process.
    """
    name, _, text = request.partition("=")
    if name != "rollouts" or not text.isdigit() or int(text) < 1:
        raise InputError(f"scale: rollouts=N with N at least 1, got {request}")
    if not os.path.isfile(folder / RUN):
        raise InputError(f"{folder}: expected the folder of a run with {RUN}")
    if not held(folder):
        raise InputError(
            f"{folder}: no process lives in this run ({LOCK}); sleep-rl resume {folder} "
            f"rollouts.workers={text} goes on with as many"
        )
    write_atomically(folder / FILE, json.dumps({"rollouts": int(text)}).encode())
    return int(text)


def wanted(folder: Path) -> int | None:
    """Return how many rollout workers were last asked for, or None."""
    try:
        return int(json.loads((folder / FILE).read_text())["rollouts"])
    except FileNotFoundError:
        return None


class Scaler:
    """Brings the number of rollout workers to what is asked for."""

    def __init__(
        self,
        backend: Backend,
        pool: Pool,
        store: WeightStore,
        journal: Journal,
        spawn: Callable[[int], Handle],
        check: Callable[[int], None],
    ) -> None:
        """`spawn(i)` starts the worker rollout-<i>; `check(n)` raises InputError when n workers can
        never all run.
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
        """Take up a new target, add workers that are ready and end those that have left. Waits for
        no worker's start.
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
                self._give_up(handle, f"did not start within {limit_s:g} s")

    def _end_closed(self) -> None:
        for handle, closing in list(self._leaving):
            if closing.ready(0):
                self._leaving.remove((handle, closing))
                handle.kill()

    def _set_target(self, count: int) -> None:
        """Start missing workers, end surplus ones: those that are still starting first."""
        self._target = count
        try:
            self._check(count)
        except InputError as error:  # reported once; the next request is tried again
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
            # comes behind the call that the worker is in
            self._leaving.append((handle, handle.start(Rollout.close)))
            self._record(handle, joined=False)

    def _join(self, handle: Handle) -> None:
        try:
            handle.ready()
            self._store.refill([handle])
        except (InputError, RunError) as error:  # the run goes on with the workers that it has
            self._give_up(handle, str(error))
            return
        self._pool.add(handle)
        self._record(handle, joined=True)

    def _record(self, handle: Handle, joined: bool) -> None:
        workers = len(self._pool.workers)
        self._journal.log("scaled", worker=handle.name, joined=joined, workers=workers)

    def _give_up(self, handle: Handle, reason: str) -> None:
        self._journal.log("failure", where=handle.name, reason=reason, count=1)
        with suppress(RunError):
            handle.kill()
