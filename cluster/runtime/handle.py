"""The caller's side of a call: handles of workers, calls under way, and how they are waited for.

Knows nothing of Ray; the backends supply the channels between a Handle and its Host.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cluster.runtime.remote import Host, RemoteError, RemoteTraceback
from cluster.runtime.resources import ResourceRequest
from cluster.runtime.watchdog import Watch
from sleep_rl.contracts.errors import InputError, RunError

R = TypeVar("R")
RENDEZVOUS = "finding a free port"
LIMITS = {
    "start": "cluster.start_timeout_s",
    RENDEZVOUS: "cluster.start_timeout_s",
    "score": "reward.timeout_s",
}
"""Name of a call -> the config key of its limit, where that is not cluster.call_timeout_s."""


class WorkerDied(RunError):
    """The worker's process is gone."""


class WorkerLate(RunError):
    """The worker did not answer within the call's deadline; it may still be busy."""


@dataclass(frozen=True)
class Ref(Generic[R]):
    """A value put once with `Backend.put`; as an argument of a call, the worker receives the value.

    `held`: the value itself (local), or Ray's ObjectRef, which keeps the stored object alive.
    """

    held: Any


class Pending(ABC, Generic[R]):
    """A call under way. `method` names it in errors."""

    watch = Watch()

    def __init__(self, worker: str, method: str) -> None:
        self.worker = worker
        self.method = method

    def result(self, timeout_s: float) -> R:
        """Wait for the worker's result.

        Raises its InputError or RunError as it is, any other exception as a RunError that names the
        worker and the method, WorkerLate past the deadline, WorkerDied when the process is gone.
        """
        [answer] = settle([self], timeout_s)
        if isinstance(answer, InputError | RunError):
            raise answer
        return answer

    def finish(self, wait_s: float, limit_s: float) -> R:
        """Return or raise like `result`, for a call that has used up part of its limit already."""
        outcome = self.outcome(max(wait_s, 0.0), limit_s)
        if not isinstance(outcome, RemoteError):
            return outcome
        if outcome.kind:
            error = outcome.kind(outcome.line)
        else:
            failed = f"worker {self.worker}: {self.method} failed: {outcome.line}"
            error = RunError(failed + self.log_hint())
        raise error from RemoteTraceback(f"in worker {self.worker}:\n{outcome.trace}")

    def late(self, limit_s: float) -> WorkerLate:
        """Return the error of a call that missed its deadline, with the config key of its limit."""
        key = LIMITS.get(self.method, "cluster.call_timeout_s")
        return WorkerLate(
            f"worker {self.worker}: {self.method} gave no answer within {limit_s:g} s ({key})"
            f"{self.log_hint()}"
        )

    def log_hint(self) -> str:
        """Return where the worker's log is; empty when it is in no file here."""
        path = os.path.join(self.watch.folder or "", f"{self.worker}.log")
        return f"; see {path}" if self.watch.folder and os.path.isfile(path) else ""

    @abstractmethod
    def ready(self, wait_s: float) -> bool:
        """Return whether the call is over, after waiting `wait_s` at most."""

    @abstractmethod
    def outcome(self, wait_s: float, limit_s: float) -> Any:
        """Return what the Host returned, within `wait_s`. Raises WorkerDied, RunError, and
        WorkerLate, which names the call's whole limit.
        """


def settle(
    pendings: Sequence[Pending[R]], timeout_s: float, stacks: bool = True
) -> list[R | InputError | RunError]:
    """Wait for all calls under one deadline; return what each gave or raised, in order.

    A long wait is reported on the console. A call past the deadline leaves the stacks of this
    process in a file, unless late calls are nothing unusual (`stacks` False).
    """
    deadline = time.monotonic() + timeout_s
    results: list[R | InputError | RunError] = []
    for pending in pendings:
        _wait(pending, pendings, deadline, timeout_s, stacks)
        try:
            results.append(pending.finish(deadline - time.monotonic(), timeout_s))
        except (InputError, RunError) as error:
            results.append(error)
    return results


def _wait(
    pending: Pending[Any],
    pendings: Sequence[Pending[Any]],
    deadline: float,
    timeout_s: float,
    stacks: bool,
) -> None:
    """Wait until `pending`, one of `pendings`, is over, or until the deadline."""
    watch = pending.watch
    while True:
        pause_s = min(watch.every_s, max(deadline - time.monotonic(), 0.0))
        if pending.ready(pause_s):
            return
        waited_s = time.monotonic() - (deadline - timeout_s)
        if waited_s >= timeout_s:
            if stacks:
                watch.given_up(f"{pending.worker}: {pending.method}")
            return
        if pause_s == watch.every_s:
            still = [f"{p.worker} {p.method}" for p in pendings if not p.ready(0)]
            watch.waiting(still, len(pendings), waited_s, timeout_s)


def wait_all(pendings: Sequence[Pending[R]], timeout_s: float, what: str) -> list[R]:
    """Return the results of all calls, under one deadline; raise the first error.

    `what` says what is waited for when a worker is late or dead.
    """
    results = settle(pendings, timeout_s)
    for error in results:
        if isinstance(error, WorkerLate | WorkerDied):
            raise type(error)(f"{what}: {error}") from error
        if isinstance(error, InputError | RunError):
            raise error
    return results


class Channel(ABC):
    """The way to one Host."""

    @abstractmethod
    def send(
        self, verb: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        """Start `verb`, a method of Host; `label` names the call in errors."""

    @abstractmethod
    def kill(self) -> None:
        """End the Host's process at once."""


class Spawner(Protocol):
    """What a Handle needs of its backend."""

    start_timeout_s: float
    call_timeout_s: float
    watch: Watch

    def open(self, request: ResourceRequest) -> Channel:
        """Make a process (or a place in this one) for one worker."""


class Handle:
    """One worker. `handle.sample(...)` blocks like the worker's own method, so a handle can stand
    where the role's Protocol is asked for; `handle.start(Rollout.sample, ...)` returns a Pending.
    """

    def __init__(
        self,
        spawner: Spawner,
        cls: str | Callable[..., Any],
        kwargs: dict[str, Any],
        request: ResourceRequest,
    ) -> None:
        """Open a channel to a Host for `cls` ("module:Class" or a callable). `build` constructs the
        worker in it.
        """
        self.name = request.name
        self._spawner = spawner
        self._cls = cls
        self._kwargs = kwargs
        self._request = request
        self._env: dict[str, str] = {}
        self._channel = spawner.open(request)
        self._construction: Pending[None] | None = None

    def build(self, env: dict[str, str]) -> None:
        """Start the worker's constructor, with these environment variables; does not wait."""
        self._env = env
        self._construction = self._watched(
            self._channel.send(Host.build, "start", self._cls, self._kwargs, env)
        )

    def rendezvous(self) -> tuple[str, int]:
        """Return an address and a port that the worker keeps free. Needs no constructed worker."""
        pending = self._watched(self._channel.send(Host.rendezvous, RENDEZVOUS))
        return pending.result(self._spawner.start_timeout_s)

    def construction(self) -> Pending[None]:
        """Return the constructor's call, which raises what the constructor raised."""
        if self._construction is None:
            raise RunError(f"worker {self.name} was not built")
        return self._construction

    def built(self) -> bool:
        """Return whether the constructor has ended, well or not; `ready` tells which."""
        return self.construction().ready(0)

    def ready(self) -> None:
        """Wait until the worker is constructed; raise what its constructor raised."""
        limit_s = self._spawner.start_timeout_s
        wait_all([self.construction()], limit_s, f"starting {self.name}")

    def start(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> Pending[R]:
        """Start `method` (a function of the role's Protocol, e.g. Rollout.sample). A Ref among the
        arguments arrives as its value.
        """
        return self._start(method.__name__, *args, **kwargs)

    def restart(self) -> None:
        """End the worker's process and construct the worker anew, as it was first started."""
        self._channel.kill()
        self._channel = self._spawner.open(self._request)
        self.build(self._env)

    def kill(self) -> None:
        """End the worker's process at once."""
        self._channel.kill()

    def _start(self, method: str, /, *args: Any, **kwargs: Any) -> Pending[Any]:
        values = [_inner(value) for value in args]
        named = {key: _inner(value) for key, value in kwargs.items()}
        return self._watched(self._channel.send(Host.call, method, method, *values, **named))

    def _watched(self, pending: Pending[Any]) -> Pending[Any]:
        pending.watch = self._spawner.watch
        return pending

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._start(method, *args, **kwargs).result(self._spawner.call_timeout_s)

        return call


def _inner(argument: Any) -> Any:
    return argument.held if isinstance(argument, Ref) else argument
