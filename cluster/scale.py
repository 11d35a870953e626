"""Rollout workers that come and go while a run goes on (`sleep-rl scale RUN rollouts=N`).

A new worker starts in the background, is filled with the newest version of every state, verified,
and joins; one that leaves ends its call first. No process group is rebuilt: rollout workers know
nothing of one another.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.runtime.pool import Pool
from cluster.runtime.ray_backend import Backend, Handle, Pending
from cluster.weights import WeightStore
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.roles import Rollout
from sleep_rl.files import write_atomically
from sleep_rl.journal.journal import Journal
from sleep_rl.runs.run_dir import FILE as RUN
from sleep_rl.runs.run_dir import LOCK, held

FILE = "scale.json"


def ask(folder: Path, request: str) -> int:
    """Leaves the wish `rollouts=N` in the folder of a run that goes on; its driver looks there
    after every round. Raises InputError when it is no such wish or no such run.
    """
    name, _, text = request.partition("=")
    if name != "rollouts" or not text.isdigit() or int(text) < 1:
        raise InputError(f"scale: rollouts=N with N at least 1, got {request}")
    if not os.path.isfile(folder / RUN):
        raise InputError(f"{folder}: expected the folder of a run with {RUN}")
    if not held(folder):
        raise InputError(
            f"{folder}: no process lives in this run ({LOCK}); sleep-rl resume "
            f"{folder} "
            f"rollouts.workers={text} goes on with as many"
        )
    write_atomically(folder / FILE, json.dumps({"rollouts": int(text)}).encode())
    return int(text)


def wanted(folder: Path) -> int | None:
    """What was last asked for, or None."""
    try:
        return int(json.loads((folder / FILE).read_text())["rollouts"])
    except FileNotFoundError:
        return None


class Scaler:
    """Brings the number of rollout workers to what is wanted. `spawn(i)` starts the worker named
    rollout-<i>.
    """

    def __init__(
        self,
        backend: Backend,
        pool: Pool,
        store: WeightStore,
        journal: Journal,
        spawn: Callable[[int], Handle],
        check: Callable[[int], None],
    ) -> None:
        """`check(n)` raises InputError when n workers can never all run."""
        self._backend, self._pool, self._store, self._journal = backend, pool, store, journal
        self._spawn, self._check = spawn, check
        self._next = self._target = len(pool.workers)
        self._joining: dict[str, tuple[Handle, float]] = {}  # and when each was started
        self._leaving: list[tuple[Handle, Pending[None]]] = []

    def step(self, count: int | None) -> None:
        """Takes up a new wish, lets in who is ready and ends who has nothing left to do. Never
        waits.
        """
        if count is not None and count != self._target:
            self._aim(count)
        for name, (handle, since) in list(self._joining.items()):
            if handle.built():
                del self._joining[name]
                self._join(handle)
            elif time.monotonic() - since > self._backend.start_timeout_s:
                del self._joining[name]
                self._give_up(handle, f"did not start within {self._backend.start_timeout_s:g} s")
        for handle, closing in list(self._leaving):
            if closing.ready(0):
                self._leaving.remove((handle, closing))
                handle.kill()

    def _aim(self, count: int) -> None:
        try:
            self._check(count)
        except InputError as error:
            self._journal.log("failure", where="scale", reason=str(error), count=1)
            self._target = count  # said once; the next wish is tried again
            return
        self._target = count
        surplus = len(self._pool.workers) + len(self._joining) - count
        for _ in range(-surplus):
            handle = self._spawn(self._next)
            self._next += 1
            self._joining[handle.name] = handle, time.monotonic()
        for name in list(self._joining)[: max(surplus, 0)]:
            self._joining.pop(name)[0].kill()
            surplus -= 1
        for handle in self._pool.remove(max(surplus, 0)):
            # behind the call that it is in
            self._leaving.append((handle, handle.start(Rollout.close)))
            self._journal.log(
                "scaled", worker=handle.name, joined=False, workers=len(self._pool.workers)
            )

    def _join(self, handle: Handle) -> None:
        try:
            handle.ready()
            self._store.refill([handle])
        except (InputError, RunError) as error:  # the run goes on with those it has
            return self._give_up(handle, str(error))
        self._pool.add(handle)
        self._journal.log(
            "scaled", worker=handle.name, joined=True, workers=len(self._pool.workers)
        )

    def _give_up(self, handle: Handle, reason: str) -> None:
        self._journal.log("failure", where=handle.name, reason=reason, count=1)
        with suppress(RunError):
            handle.kill()
