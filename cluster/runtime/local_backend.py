"""The backend that runs every worker in this process: deterministic and easy to debug."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.backend import Backend
from cluster.runtime.handle import Channel, Pending, Ref
from cluster.runtime.remote import Host
from cluster.runtime.resources import ResourceRequest

R = TypeVar("R")


class LocalPending(Pending[R]):
    """A call that has completed. It cannot be interrupted, but one that took longer than its
    timeout raises WorkerTimeout all the same.
    """

    def __init__(self, worker: str, method: str, result: Any, seconds: float) -> None:
        super().__init__(worker, method)
        self._result = result
        self._seconds = seconds

    def ready(self, wait_s: float) -> bool:
        return True

    def outcome(self, wait_s: float, limit_s: float) -> Any:
        if self._seconds > limit_s:
            raise self.timeout_error(limit_s)
        return self._result


class LocalChannel(Channel):
    """Calls the Host synchronously, in the caller's thread."""

    def __init__(self, name: str) -> None:
        self._host = Host(name)

    def send(
        self, host_method: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        started = time.monotonic()
        result = host_method(self._host, *args, **kwargs)
        return LocalPending(self._host.name, label, result, time.monotonic() - started)

    def kill(self) -> None:
        self._host.end()


class LocalBackend(Backend):
    """Runs every worker in this process, one call at a time. CPUs and GPUs are not counted."""

    def __init__(self, start_timeout_s: float = 300.0, call_timeout_s: float = 600.0) -> None:
        super().__init__(start_timeout_s, call_timeout_s)
        self._channels: list[LocalChannel] = []

    def open(self, request: ResourceRequest) -> Channel:
        channel = LocalChannel(request.name)
        self._channels.append(channel)
        return channel

    def preflight(self, requests: Sequence[ResourceRequest]) -> None:
        return None

    def put(self, value: R) -> Ref[R]:
        return Ref(value)

    def get(self, ref: Ref[R]) -> R:
        return ref.target

    def shutdown(self) -> None:
        while self._channels:
            self._channels.pop().kill()
