"""A worker in a Ray actor: its Host in the actor's process, calls to it, and their errors."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from cluster.runtime.handle import Channel, Pending, WorkerDied
from cluster.runtime.remote import Host, RemoteError
from cluster.runtime.resources import ResourceRequest
from sleep_rl.contracts.errors import RunError

R = TypeVar("R")
PackedTensor = tuple[Any, str, tuple[int, ...]]
# share of a call's timeout after which the worker writes its stacks into its log
DUMP_STACKS_AT = 0.95


class RayHost(Host):
    """A Host in a Ray actor's process."""

    def __init__(
        self,
        name: str,
        gpus: float,
        log_dir: str | None,
        search_path: list[str],
        limits_s: tuple[float, float],
    ) -> None:
        """Create a host. `search_path`: the driver's sys.path, so that this process can import what
        the driver can. `limits_s`: timeouts of the construction, and of a call.
        """
        super().__init__(name)
        self._limits_s = limits_s
        sys.path += [path for path in search_path if path not in sys.path]
        if gpus == 0:  # Ray hides the other actors' GPUs only from an actor that asked for some
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if log_dir:
            _redirect_output(os.path.join(log_dir, f"{name}.log"))

    def address(self) -> str:
        import ray

        return ray.util.get_node_ip_address()

    def attempt(self, function: Callable[[], Any]) -> Any:
        limit_s = self._limits_s[self.worker is not None]
        # into this worker's log, just before the caller's timeout
        faulthandler.dump_traceback_later(DUMP_STACKS_AT * limit_s)
        try:
            result = super().attempt(function)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if isinstance(result, RemoteError):
            with suppress(OSError):  # of a full disk; the caller gets the error all the same
                print(result.trace, file=sys.stderr, flush=True)
        send_tensors_as_bytes()
        return result


def _redirect_output(path: str) -> None:
    """Append this process's output to a file, by redirecting file descriptors 1 and 2 and not
    sys.stdout: C++ code and child processes write there, too.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class RayPending(Pending[R]):
    """The future of a Ray call. `object_ref`: the ObjectRef of its result."""

    def __init__(self, worker: str, method: str, object_ref: Any) -> None:
        super().__init__(worker, method)
        self._object_ref = object_ref

    def ready(self, wait_s: float) -> bool:
        import ray

        return bool(ray.wait([self._object_ref], timeout=wait_s)[0])

    def outcome(self, wait_s: float, limit_s: float) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError

        died = f"worker {self.worker} died during {self.method}"
        try:
            return ray.get(self._object_ref, timeout=wait_s)
        except GetTimeoutError:
            raise self.timeout_error(limit_s) from None
        except RayActorError as error:
            raise WorkerDied(f"{died}: {_cause(str(error))}{self.log_hint()}") from error
        except OutOfMemoryError as error:
            # Ray kills the worker, and raises this in place of a RayActorError
            raise WorkerDied(
                f"{died}: the memory of its node was nearly full{_memory(str(error))}, and Ray "
                "killed it"
            ) from error
        except RayError as error:
            raise RunError(
                f"worker {self.worker}: {self.method} failed: {type(error).__name__}: "
                f"{_cause(str(error))}{self.log_hint()}"
            ) from error


def _cause(text: str) -> str:
    """Return the one sentence of Ray's long message that names the cause."""
    for mark in ("Worker exit detail: ", "The actor is dead because "):
        if mark in text:
            return text.split(mark, 1)[1].splitlines()[0].split(". ")[0].rstrip(".")
    return text.strip().splitlines()[-1]  # the last line of a traceback


def _memory(text: str) -> str:
    """Return " (used of total)" from Ray's out-of-memory message; empty if it has no numbers."""
    match = re.search(r"\b([\d.]+ ?[GM]i?B) ?/ ?([\d.]+ ?[GM]i?B)", text)
    return f" ({match[1]} of {match[2]})" if match else ""


class RayChannel(Channel):
    """Creates one actor, and sends calls to the Host in it."""

    def __init__(
        self,
        request: ResourceRequest,
        log_dir: str | None,
        limits_s: tuple[float, float],
        scheduling: Any = "DEFAULT",
    ) -> None:
        """Start the actor. `scheduling`: Ray's scheduling strategy, e.g. a bundle of a placement
        group.
        """
        import ray

        self._name = request.name
        actor_class = ray.remote(RayHost).options(
            num_cpus=request.cpus,
            num_gpus=request.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=scheduling,
        )
        self._actor = actor_class.remote(request.name, request.gpus, log_dir, sys.path, limits_s)

    def send(
        self, host_method: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        send_tensors_as_bytes()
        object_ref = getattr(self._actor, host_method.__name__).remote(*args, **kwargs)
        return RayPending(self._name, label, object_ref)

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


def send_tensors_as_bytes() -> None:
    """Register a Ray serializer that sends torch tensors as out-of-band buffers instead of torch's
    own pickles (57 MB: 10x faster, measured).

    A tensor is copied out of the object store on arrival, so that writing into it cannot change
    what others read; numpy arrays arrive as read-only views. Called before each send; does nothing
    in a process that has not imported torch.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        from ray.util import register_serializer

        register_serializer(
            torch.Tensor, serializer=_tensor_to_bytes, deserializer=_tensor_from_bytes
        )


def _tensor_to_bytes(tensor: Any) -> PackedTensor:
    """Return a CPU view of the bytes, the dtype (numpy has no bfloat16) and the shape."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy()
    return data, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _tensor_from_bytes(packed: PackedTensor) -> Any:
    """Return the tensor, copied into memory of its own."""
    import torch

    data, dtype, shape = packed
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    tensor.reshape(-1).view(torch.uint8).numpy()[:] = data
    return tensor
