"""What a backend is, and the one that runs every worker in this process. `cluster.runtime.ray_backend` adds
Ray.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.handle import Channel, Handle, Host, Pending, Ref, ResourceRequest, wait_all
from cluster.runtime.watchdog import Watch

R = TypeVar("R")


class Backend(ABC):
    """Starts workers, holds objects, ends both. A context manager: leaving it shuts everything
    down.
    """

    def __init__(self, start_timeout_s: float = 300.0, call_timeout_s: float = 600.0) -> None:
        self.start_timeout_s, self.call_timeout_s = start_timeout_s, call_timeout_s
        self.watch = Watch()

    def spawn(
        self,
        cls: str | Callable[..., Any],
        kwargs: dict[str, Any],
        *,
        name: str,
        cpus: float = 0.0,
        gpus: float = 0.0,
        env: dict[str, str] | None = None,
    ) -> Handle:
        """Starts one worker of `cls` ("module:Class" or a callable) without waiting for it: see
        `ready`.
        """
        handle = Handle(self, cls, kwargs, ResourceRequest(name, 1, cpus, gpus), dict(env or {}))
        handle._build()
        return handle

    def spawn_ranks(
        self,
        cls: str | Callable[..., Any],
        kwargs: dict[str, Any],
        *,
        name: str,
        world_size: int,
        cpus: float = 0.0,
        gpus: float = 0.0,
        env: dict[str, str] | None = None,
    ) -> list[Handle]:
        """Starts the ranks of one process group, `<name>-<rank>`. Rank 0's node supplies the
        meeting point. LOCAL_RANK is 0 everywhere, since a worker sees only its own devices. They
        get room together, or the start fails.
        """
        self.reserve([f"{name}-{rank}" for rank in range(world_size)], cpus, gpus)
        handles = [
            Handle(self, cls, kwargs, ResourceRequest(f"{name}-{rank}", 1, cpus, gpus), {})
            for rank in range(world_size)
        ]
        meeting = handles[0]._channel.send(Host.rendezvous, "finding a free port")
        host, port = meeting.result(self.start_timeout_s)
        for rank, handle in enumerate(handles):
            handle._env = {
                **(env or {}),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": host,
                "MASTER_PORT": str(port),
            }
            handle._build()
        return handles

    def ready(self, handles: Sequence[Handle]) -> None:
        """Waits until every worker is constructed; raises what a constructor raised."""
        wait_all(
            [h._built for h in handles],
            self.start_timeout_s,
            f"starting {', '.join(h.name for h in handles)}",
        )

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @abstractmethod
    def open(self, ask: ResourceRequest) -> Channel:
        """A process (or a place in this one) for one worker."""

    def reserve(self, names: Sequence[str], cpus: float, gpus: float) -> None:
        """Holds room for workers that are of use together only. Raises RunError when there is none
        in time.
        """

    @abstractmethod
    def preflight(self, asks: Sequence[ResourceRequest]) -> None:
        """Raises InputError when the workers can never all run at once."""

    @abstractmethod
    def put(self, value: R) -> Ref[R]:
        """Stores a value once, for any number of calls; it is dropped with its last Ref."""

    @abstractmethod
    def get(self, ref: Ref[R]) -> R:
        """The value of a Ref."""

    @abstractmethod
    def shutdown(self) -> None:
        """Ends every worker; safe to call after a failure and twice."""


class _LocalPending(Pending[R]):
    """A call that is over already. It cannot be interrupted, but past its deadline it counts as
    late all the same.
    """

    def __init__(self, worker: str, method: str, answer: Any, seconds: float) -> None:
        super().__init__(worker, method)
        self._answer, self._seconds = answer, seconds

    def ready(self, wait_s: float) -> bool:
        return True

    def outcome(self, wait_s: float, limit_s: float) -> Any:
        if self._seconds > limit_s:
            raise self.late(limit_s)
        return self._answer


class _LocalChannel(Channel):
    """Calls the Host at once, in the caller's thread: deterministic, and a debugger sees
    everything.
    """

    def __init__(self, name: str) -> None:
        self._host = Host(name)

    def send(
        self, verb: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        began = time.monotonic()
        answer = verb(self._host, *args, **kwargs)
        return _LocalPending(self._host.name, label, answer, time.monotonic() - began)

    def kill(self) -> None:
        self._host.worker = None
        for key, value in self._host.before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
        self._host.before = {}


class LocalBackend(Backend):
    """Every worker in this process, one call at a time. CPUs and GPUs are not counted."""

    def __init__(self, start_timeout_s: float = 300.0, call_timeout_s: float = 600.0) -> None:
        super().__init__(start_timeout_s, call_timeout_s)
        self._channels: list[_LocalChannel] = []

    def open(self, ask: ResourceRequest) -> Channel:
        self._channels.append(_LocalChannel(ask.name))
        return self._channels[-1]

    def preflight(self, asks: Sequence[ResourceRequest]) -> None:
        return None

    def put(self, value: R) -> Ref[R]:
        return Ref(value)

    def get(self, ref: Ref[R]) -> R:
        return ref.held

    def shutdown(self) -> None:
        while self._channels:
            self._channels.pop().kill()
