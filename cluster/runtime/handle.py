"""One worker and the calls to it, wherever it runs: the Host around the plain worker, and the
Handle that calls it.

Knows nothing of Ray; `cluster.runtime.backend` and `cluster.runtime.ray_backend` supply the channels between the two.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cluster.runtime.watchdog import Watch
from sleep_rl.config.secrets import masked
from sleep_rl.contracts.errors import InputError, RunError

if TYPE_CHECKING:
    from cluster.runtime.backend import Backend

R = TypeVar("R")
LIMITS = {
    "start": "cluster.start_timeout_s",
    "finding a free port": "cluster.start_timeout_s",
    "score": "reward.timeout_s",
}
"""What is called -> the key of its limit, where that is not cluster.call_timeout_s."""


class WorkerDied(RunError):
    """The worker's process is gone."""


class WorkerLate(RunError):
    """The worker did not answer within the call's deadline; it may still be busy."""


@dataclass(frozen=True)
class ResourceRequest:
    """What one kind of worker needs; `cpus` and `gpus` are per worker."""

    name: str
    count: int
    cpus: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Ref(Generic[R]):
    """A value put once with `Backend.put`; given as an argument of a call, the worker receives the
    value.
    """

    held: Any  # the value itself (local) or Ray's ObjectRef, which keeps the stored object alive


# ---- the worker's side


@dataclass(frozen=True)
class RemoteError:
    """A worker's exception on its way to the caller: as text, because not every exception can be
    pickled.
    """

    kind: type[InputError] | type[RunError] | None  # None: anything else
    line: str
    trace: str


class RemoteTraceback(Exception):
    """The cause of an exception that a worker raised: its traceback there, as text."""


class Host:
    """Holds one plain worker. What the worker raises is returned as `RemoteError`, identically in both
    backends.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: Any = None
        # why there is no worker; empty when there is one
        self.failed = "its class could not be sent"
        self.before: dict[str, str | None] = {}  # the environment that `build` changed

    def build(
        self, cls: str | Callable[..., Any], kwargs: dict[str, Any], env: dict[str, str]
    ) -> Any:
        """Constructs the worker. `env` is set before its module is imported: OpenMP reads it at
        import.
        """
        self.before = {key: os.environ.get(key) for key in env}
        os.environ.update(env)

        def construct() -> None:
            self.worker = (_import(cls) if isinstance(cls, str) else cls)(**kwargs)

        answer = self.attempt(construct)
        self.failed = answer.line if isinstance(answer, RemoteError) else ""
        return answer

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Calls the worker."""
        if self.failed:
            return RemoteError(RunError, f"worker {self.name} did not start: {self.failed}", "")
        return self.attempt(lambda: getattr(self.worker, method)(*args, **kwargs))

    def rendezvous(self) -> tuple[str, int]:
        """Address of this node, and a port that is free on it now, for the process group that rank
        0 leads.
        """
        with socket.socket() as probe:
            probe.bind(("", 0))
            return self.address(), probe.getsockname()[1]

    def address(self) -> str:
        return "127.0.0.1"

    def attempt(self, function: Callable[[], Any]) -> Any:
        """The function's result, or `RemoteError`."""
        try:
            return function()
        except Exception as error:
            # the boundary of the worker: every exception is carried over and raised there
            kind = next((k for k in (InputError, RunError) if isinstance(error, k)), None)
            text = (str(error).splitlines() or [""])[0]
            return RemoteError(
                kind,
                masked(text if kind else f"{type(error).__name__}: {text}"),
                masked(traceback.format_exc()),
            )


def _import(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def tensor_to_bytes(tensor: Any) -> tuple[Any, str, tuple[int, ...]]:
    """A CPU view of the bytes, the dtype (numpy has no bfloat16) and the shape."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return (
        flat.view(torch.uint8).numpy(),
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
    )


def tensor_from_bytes(packed: tuple[Any, str, tuple[int, ...]]) -> Any:
    """The tensor again, in memory of its own."""
    import torch

    data, dtype, shape = packed
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    tensor.reshape(-1).view(torch.uint8).numpy()[:] = data
    return tensor


# ---- the caller's side


class Pending(ABC, Generic[R]):
    """A call under way."""

    watch = Watch()

    def __init__(self, worker: str, method: str) -> None:
        self.worker, self.method = worker, method

    def result(self, timeout_s: float) -> R:
        """The worker's result. Raises its InputError or RunError as it is, any other exception as a
        RunError that names the worker and the method, WorkerLate past the deadline, WorkerDied when
        the process is gone.
        """
        [answer] = settle([self], timeout_s)
        if isinstance(answer, InputError | RunError):
            raise answer
        return answer

    def finish(self, wait_s: float, limit_s: float) -> R:
        """Like `result`, for a call that has used up part of its limit already; says nothing while
        it waits.
        """
        outcome = self.outcome(max(wait_s, 0.0), limit_s)
        if not isinstance(outcome, RemoteError):
            return outcome
        error = (
            outcome.kind(outcome.line)
            if outcome.kind
            else RunError(
                f"worker {self.worker}: {self.method} failed: {outcome.line}{self.told()}"
            )
        )
        raise error from RemoteTraceback(f"in worker {self.worker}:\n{outcome.trace}")

    def late(self, limit_s: float) -> WorkerLate:
        return WorkerLate(
            f"worker {self.worker}: {self.method} gave no answer within "
            f"{limit_s:g} s "
            f"({LIMITS.get(self.method, 'cluster.call_timeout_s')}){self.told()}"
        )

    def told(self) -> str:
        """Where the worker's own words are; empty when they are in no file here."""
        path = os.path.join(self.watch.folder or "", f"{self.worker}.log")
        return f"; see {path}" if self.watch.folder and os.path.isfile(path) else ""

    @abstractmethod
    def ready(self, wait_s: float) -> bool:
        """Whether the call is over, after waiting so long at most."""

    @abstractmethod
    def outcome(self, wait_s: float, limit_s: float) -> Any: ...


def settle(
    pendings: Sequence[Pending[R]], timeout_s: float, stacks: bool = True
) -> list[R | InputError | RunError]:
    """Waits for all calls under one deadline; what each gave or raised, in order. A long wait says
    what it waits for; one past its deadline leaves this process's stacks behind, unless a late call
    is nothing unusual (`stacks`).
    """
    began = time.monotonic()
    results: list[R | InputError | RunError] = []
    for pending in pendings:
        watch = pending.watch
        while not pending.ready(
            pause := min(watch.every_s, max(began + timeout_s - time.monotonic(), 0.0))
        ):
            waited = time.monotonic() - began
            if waited >= timeout_s:
                if stacks:
                    watch.given_up(f"{pending.worker}: {pending.method}")
                break
            if pause == watch.every_s:
                still = [f"{p.worker} {p.method}" for p in pendings if not p.ready(0)]
                watch.waiting(still, len(pendings), waited, timeout_s)
        try:
            results.append(pending.finish(began + timeout_s - time.monotonic(), timeout_s))
        except (InputError, RunError) as error:
            results.append(error)
    return results


def wait_all(pendings: Sequence[Pending[R]], timeout_s: float, what: str) -> list[R]:
    """The results of all calls, under one deadline. `what` says what is waited for when a worker is
    late or dead.
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
        """Starts a method of Host; `label` names it in errors."""

    @abstractmethod
    def kill(self) -> None: ...


class Handle:
    """One worker. `handle.sample(...)` blocks like the worker's own method, so a handle can stand
    where the role's Protocol is asked for; `handle.start(Rollout.sample, ...)` returns a Pending.
    """

    def __init__(
        self,
        backend: Backend,
        cls: str | Callable[..., Any],
        kwargs: dict[str, Any],
        ask: ResourceRequest,
        env: dict[str, str],
    ) -> None:
        self.name = ask.name
        self._backend, self._cls, self._kwargs, self._ask, self._env = (
            backend,
            cls,
            kwargs,
            ask,
            env,
        )
        self._channel = backend.open(ask)
        self._built: Pending[None]

    def start(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> Pending[R]:
        """Starts `method` (a function of the role's Protocol, e.g. Rollout.sample); a Ref among the
        arguments arrives as its value.
        """
        return self._start(method.__name__, *args, **kwargs)

    def restart(self) -> None:
        """Ends the worker's process and constructs the worker anew, with the state of its first
        start.
        """
        self._channel.kill()
        self._channel = self._backend.open(self._ask)
        self._build()

    def built(self) -> bool:
        """Whether the constructor has ended, well or not; `ready` tells which."""
        return self._built.ready(0)

    def kill(self) -> None:
        """Ends the worker's process at once."""
        self._channel.kill()

    def ready(self) -> None:
        """Waits until the worker is constructed; raises what its constructor raised."""
        wait_all([self._built], self._backend.start_timeout_s, f"starting {self.name}")

    def _start(self, method: str, /, *args: Any, **kwargs: Any) -> Pending[Any]:
        return self._watched(
            self._channel.send(
                Host.call,
                method,
                method,
                *map(_inner, args),
                **{key: _inner(value) for key, value in kwargs.items()},
            )
        )

    def _build(self) -> None:
        self._built = self._watched(
            self._channel.send(Host.build, "start", self._cls, self._kwargs, self._env)
        )

    def _watched(self, pending: Pending[Any]) -> Pending[Any]:
        pending.watch = self._backend.watch
        return pending

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args, **kwargs: self._start(method, *args, **kwargs).result(
            self._backend.call_timeout_s
        )


def _inner(argument: Any) -> Any:
    return argument.held if isinstance(argument, Ref) else argument
