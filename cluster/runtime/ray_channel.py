"""A worker in an actor of Ray: its host in the actor's process, the calls to it, their errors."""

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
# share of a call's limit after which the worker writes its stacks into its log
STACKS_AT = 0.95


class RayHost(Host):
    """A Host in an actor's process."""

    def __init__(
        self,
        name: str,
        gpus: float,
        log_dir: str | None,
        search_path: list[str],
        limits_s: tuple[float, float],
    ) -> None:
        """`search_path`: the driver's sys.path; what the driver can import, this process can.
        `limits_s`: of construction, and of a call.
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
        # into this worker's log, just before the call is given up
        faulthandler.dump_traceback_later(STACKS_AT * limit_s)
        try:
            result = super().attempt(function)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if isinstance(result, RemoteError):
            with suppress(OSError):  # a full disk is reported by what is returned
                print(result.trace, file=sys.stderr, flush=True)
        send_tensors_as_bytes()
        return result


def _redirect_output(path: str) -> None:
    """Append this process's output to a file: by its descriptors and not by sys.stdout, because C++
    and child processes write there, too.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class RayPending(Pending[R]):
    """A call of Ray. `answer`: the ObjectRef of its result."""

    def __init__(self, worker: str, method: str, answer: Any) -> None:
        super().__init__(worker, method)
        self._answer = answer

    def ready(self, wait_s: float) -> bool:
        import ray

        return bool(ray.wait([self._answer], timeout=wait_s)[0])

    def outcome(self, wait_s: float, limit_s: float) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError

        died = f"worker {self.worker} died during {self.method}"
        try:
            return ray.get(self._answer, timeout=wait_s)
        except GetTimeoutError:
            raise self.late(limit_s) from None
        except RayActorError as error:
            raise WorkerDied(f"{died}: {_cause(str(error))}{self.log_hint()}") from error
        except OutOfMemoryError as error:
            # Ray ends the worker; its error says so, and is no RayActorError
            raise WorkerDied(
                f"{died}: the memory of its node was nearly full{_memory(str(error))}, and Ray "
                "ended it"
            ) from error
        except RayError as error:
            raise RunError(
                f"worker {self.worker}: {self.method} failed: {type(error).__name__}: "
                f"{_cause(str(error))}{self.log_hint()}"
            ) from error


def _cause(text: str) -> str:
    """Return the one sentence of Ray's long messages that says why."""
    for mark in ("Worker exit detail: ", "The actor is dead because "):
        if mark in text:
            return text.split(mark, 1)[1].splitlines()[0].split(". ")[0].rstrip(".")
    return text.strip().splitlines()[-1]  # of a traceback the last line


def _memory(text: str) -> str:
    """Return " (used of total)" from Ray's message about a full node, if it says so."""
    match = re.search(r"\b([\d.]+ ?[GM]i?B) ?/ ?([\d.]+ ?[GM]i?B)", text)
    return f" ({match[1]} of {match[2]})" if match else ""


class RayChannel(Channel):
    """The way to the Host in one actor, which is created here."""

    def __init__(
        self,
        request: ResourceRequest,
        log_dir: str | None,
        limits_s: tuple[float, float],
        scheduling: Any = "DEFAULT",
    ) -> None:
        """`scheduling`: Ray's scheduling strategy, e.g. a bundle of a placement group."""
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
        self, verb: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        send_tensors_as_bytes()
        answer = getattr(self._actor, verb.__name__).remote(*args, **kwargs)
        return RayPending(self._name, label, answer)

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


def send_tensors_as_bytes() -> None:
    """Let torch tensors cross Ray as out-of-band buffers instead of torch's own pickles (57 MB: 10x
    faster, measured).

    A tensor is copied out of the store on arrival, so that writing into it can never change what
    others read; numpy arrays arrive as read-only views. Called before anything is sent: a process
    without torch has no tensors to send.
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
    """Return the tensor in memory of its own."""
    import torch

    data, dtype, shape = packed
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    tensor.reshape(-1).view(torch.uint8).numpy()[:] = data
    return tensor
