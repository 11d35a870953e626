"""The caller's side of a remote call: handles of workers, pending calls, and waiting for them.

Does not import Ray; the backends supply the channels between a Handle and its Host.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from cluster.runtime.remote import Host, RemoteError, RemoteTraceback
from cluster.runtime.resources import ResourceRequest
from cluster.runtime.watchdog import Watchdog
from sleep_rl.contracts.errors import InputError, RunError

R = TypeVar("R")
RENDEZVOUS = "finding a free port"
LIMITS = {
    "start": "cluster.start_timeout_s",
    RENDEZVOUS: "cluster.start_timeout_s",
    "score": "reward.timeout_s",
}
"""Name of a call -> the config key of its timeout, where that is not cluster.call_timeout_s."""


class WorkerDied(RunError):
    """The worker's process is gone."""


class WorkerTimeout(RunError):
    """The call did not return within its timeout; the worker may still be running it."""


CallResult = R | InputError | RunError
"""What a call returned or raised."""


@dataclass(frozen=True)
class Ref(Generic[R]):
    """A value that `Backend.put` stored; as an argument of a call, the worker receives the value.

    `target`: the value itself (local), or Ray's ObjectRef, which keeps the stored object alive.
    """

    target: Any


class Pending(ABC, Generic[R]):
    """The future of one call. `method` names the call in errors."""

    watchdog = Watchdog()

    def __init__(self, worker: str, method: str) -> None:
        self.worker = worker
        self.method = method

    def reports_to(self, watchdog: Watchdog) -> Self:
        """Report waits for this call to `watchdog`; return the call."""
        self.watchdog = watchdog
        return self

    def result(self, timeout_s: float) -> R:
        """Wait for the worker's result.

        Raises its InputError or RunError as it is, any other exception as a RunError that names the
        worker and the method, WorkerTimeout past the deadline, WorkerDied when the process is gone.
        """
        [result] = settle([self], timeout_s)
        if isinstance(result, InputError | RunError):
            raise result
        return result

    def finish(self, wait_s: float, limit_s: float) -> R:
        """Return or raise like `result`, within the `wait_s` that are left of the timeout
        `limit_s`.
        """
        outcome = self.outcome(max(wait_s, 0.0), limit_s)
        if not isinstance(outcome, RemoteError):
            return outcome
        if outcome.kind:
            error = outcome.kind(outcome.line)
        else:
            failed = f"worker {self.worker}: {self.method} failed: {outcome.line}"
            error = RunError(failed + self.log_hint())
        raise error from RemoteTraceback(f"in worker {self.worker}:\n{outcome.trace}")

    def timeout_error(self, limit_s: float) -> WorkerTimeout:
        """Return the error of a call that missed its deadline; it names the timeout's config
        key.
        """
        key = LIMITS.get(self.method, "cluster.call_timeout_s")
        return WorkerTimeout(
            f"worker {self.worker}: {self.method} did not return within {limit_s:g} s ({key})"
            f"{self.log_hint()}"
        )

    def log_hint(self) -> str:
        """Return "; see <path of the worker's log>"; empty when there is no such file."""
        path = os.path.join(self.watchdog.folder or "", f"{self.worker}.log")
        return f"; see {path}" if self.watchdog.folder and os.path.isfile(path) else ""

    @abstractmethod
    def ready(self, wait_s: float) -> bool:
        """Return whether the call has ended, after waiting `wait_s` at most."""

    @abstractmethod
    def outcome(self, wait_s: float, limit_s: float) -> Any:
        """Return what the Host returned, within `wait_s`. Raises WorkerDied, RunError, and
        WorkerTimeout, which names the whole timeout `limit_s`.
        """


def settle(
    pendings: Sequence[Pending[R]], timeout_s: float, stacks: bool = True
) -> list[CallResult[R]]:
    """Wait for all calls under one deadline; return what each returned or raised, in order.

    A long wait is reported on the console. For a call past the deadline the stacks of this process
    are written to a file, unless timeouts are expected (`stacks` False).
    """
    deadline = time.monotonic() + timeout_s
    results: list[CallResult[R]] = []
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
    """Wait until `pending`, one of `pendings`, has ended, or until the deadline."""
    watchdog = pending.watchdog
    while True:
        pause_s = min(watchdog.every_s, max(deadline - time.monotonic(), 0.0))
        if pending.ready(pause_s):
            return
        waited_s = time.monotonic() - (deadline - timeout_s)
        if waited_s >= timeout_s:
            if stacks:
                watchdog.dump_stacks(f"{pending.worker}: {pending.method}")
            return
        if pause_s == watchdog.every_s:
            unfinished = [f"{p.worker} {p.method}" for p in pendings if not p.ready(0)]
            watchdog.report(unfinished, len(pendings), waited_s, timeout_s)


def wait_all(pendings: Sequence[Pending[R]], timeout_s: float, what: str) -> list[R]:
    """Return the results of all calls, under one deadline; raise the first error.

    `what`: prefix of the message of a WorkerTimeout or WorkerDied.
    """
    results = settle(pendings, timeout_s)
    for error in results:
        if isinstance(error, WorkerTimeout | WorkerDied):
            raise type(error)(f"{what}: {error}") from error
        if isinstance(error, InputError | RunError):
            raise error
    return results


class Channel(ABC):
    """Sends calls to one Host."""

    @abstractmethod
    def send(
        self, host_method: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        """Start `host_method`, a method of Host; `label` names the call in errors."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the Host's process."""


class Spawner(Protocol):
    """The part of a Backend that a Handle uses."""

    start_timeout_s: float
    call_timeout_s: float
    watchdog: Watchdog

    def open(self, request: ResourceRequest) -> Channel:
        """Start a Host for one worker, in a process of its own or in this one."""


class Handle:
    """A handle of one worker, like an actor handle of Ray. `handle.sample(...)` blocks until the
    worker's method returns, so a handle implements the role's Protocol;
    `handle.start(Rollout.sample, ...)` returns a Pending.
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
        self._construction = self._with_watchdog(
            self._channel.send(Host.build, "start", self._cls, self._kwargs, env)
        )

    def rendezvous(self) -> tuple[str, int]:
        """Return an address and a port that the worker's Host reserves. Works before `build`."""
        pending = self._with_watchdog(self._channel.send(Host.rendezvous, RENDEZVOUS))
        return pending.result(self._spawner.start_timeout_s)

    def construction(self) -> Pending[None]:
        """Return the pending constructor call, which raises what the constructor raised."""
        if self._construction is None:
            raise RunError(f"worker {self.name} was not built")
        return self._construction

    def built(self) -> bool:
        """Return whether the constructor has returned or raised; `ready` raises its error."""
        return self.construction().ready(0)

    def ready(self) -> None:
        """Wait until the worker is constructed; raise what its constructor raised."""
        limit_s = self._spawner.start_timeout_s
        wait_all([self.construction()], limit_s, f"starting {self.name}")

    def start(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> Pending[R]:
        """Start `method` (a function of the role's Protocol, e.g. Rollout.sample) without waiting.
        The worker receives the value of a Ref among the arguments.
        """
        return self._start(method.__name__, *args, **kwargs)

    def restart(self) -> None:
        """Kill the worker's process and start the worker again with the same arguments and
        environment; does not wait.
        """
        self._channel.kill()
        self._channel = self._spawner.open(self._request)
        self.build(self._env)

    def kill(self) -> None:
        """Kill the worker's process."""
        self._channel.kill()

    def _start(self, method: str, /, *args: Any, **kwargs: Any) -> Pending[Any]:
        values = [_unwrapped(value) for value in args]
        named = {key: _unwrapped(value) for key, value in kwargs.items()}
        return self._with_watchdog(self._channel.send(Host.call, method, method, *values, **named))

    def _with_watchdog(self, pending: Pending[Any]) -> Pending[Any]:
        return pending.reports_to(self._spawner.watchdog)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._start(method, *args, **kwargs).result(self._spawner.call_timeout_s)

        return call


def _unwrapped(argument: Any) -> Any:
    return argument.target if isinstance(argument, Ref) else argument
