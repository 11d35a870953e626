"""The worker's side of a remote call: the Host that holds a plain worker, and exceptions as values.

Does not import Ray: `local_backend` calls a Host directly, `ray_backend` in an actor's process.
"""

from __future__ import annotations

import importlib
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.runtime.ports import reserve_port
from sleep_rl.config.secrets import masked
from sleep_rl.contracts.errors import InputError, RunError


@dataclass(frozen=True)
class RemoteError:
    """A worker's exception as text, for the way to the caller: not every exception can be pickled.

    `kind`: the class that is raised at the caller; None: neither InputError nor RunError. `line`:
    its message; `trace`: its traceback.
    """

    kind: type[InputError] | type[RunError] | None
    line: str
    trace: str


class RemoteTraceback(Exception):
    """The worker's traceback as text: the cause of the exception that is raised at the caller."""


class Host:
    """Holds one plain worker, the same in all backends; returns what it raises as `RemoteError`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.worker: Any = None
        # why there is no worker; empty when there is one
        self.failed = "its class could not be deserialized"
        self.replaced_env: dict[str, str | None] = {}  # the variables that `build` changed
        # reserves the port of `rendezvous`
        self.reserved_port: socket.socket | None = None

    def build(
        self, cls: str | Callable[..., Any], kwargs: dict[str, Any], env: dict[str, str]
    ) -> Any:
        """Construct the worker. `env` is set before its module is imported, because OpenMP reads
        its variables at import.
        """
        self.replaced_env = {key: os.environ.get(key) for key in env}
        os.environ.update(env)

        def construct() -> None:
            factory = _import(cls) if isinstance(cls, str) else cls
            self.worker = factory(**kwargs)

        result = self.attempt(construct)
        self.failed = result.line if isinstance(result, RemoteError) else ""
        return result

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Return the result of a method of the worker, or a RemoteError."""
        if self.failed:
            return RemoteError(RunError, f"worker {self.name} did not start: {self.failed}", "")
        return self.attempt(lambda: getattr(self.worker, method)(*args, **kwargs))

    def rendezvous(self) -> tuple[str, int]:
        """Return this node's address and a reserved port: MASTER_ADDR and MASTER_PORT of a process
        group whose rank 0 runs here. The port stays bound until `release`, because rank 0 listens
        on it only seconds later, after it has imported torch.
        """
        self.release()
        self.reserved_port = reserve_port()
        return self.address(), self.reserved_port.getsockname()[1]

    def release(self) -> None:
        """Release the port of `rendezvous`."""
        if self.reserved_port is not None:
            self.reserved_port.close()
            self.reserved_port = None

    def end(self) -> None:
        """Drop the worker, release the port and restore the environment, where the process goes
        on.
        """
        self.worker = None
        self.release()
        for key, value in self.replaced_env.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        self.replaced_env = {}

    def address(self) -> str:
        """Return the address at which the other workers reach this node."""
        return "127.0.0.1"

    def attempt(self, function: Callable[[], Any]) -> Any:
        """Return the function's result, or `RemoteError` for what it raised."""
        try:
            return function()
        # the boundary of the worker: every exception is returned and raised at the caller
        except Exception as error:  # noqa: BLE001
            kind = next((kind for kind in (InputError, RunError) if isinstance(error, kind)), None)
            text = (str(error).splitlines() or [""])[0]
            line = text if kind else f"{type(error).__name__}: {text}"
            return RemoteError(kind, masked(line), masked(traceback.format_exc()))


def _import(path: str) -> Callable[..., Any]:
    """Return the class that "module:Class" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
