"""The interface of a backend: it starts workers, stores objects for them, and shuts both down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.handle import Channel, Handle, Ref, wait_all
from cluster.runtime.resources import ResourceRequest
from cluster.runtime.watchdog import Watchdog

R = TypeVar("R")


def rank_environment(rank: int, world_size: int, host: str, port: int) -> dict[str, str]:
    """Return the variables by which a rank joins its torch.distributed process group at `host` and
    `port`. LOCAL_RANK is 0 everywhere, since a worker sees only its own devices.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


class Backend(ABC):
    """Starts workers: `local_backend` in this process, `ray_backend` as Ray actors.

    A context manager: leaving it shuts everything down. Workers are plain classes, named by import
    path, so that vllm, torch and deepspeed are imported in the worker's process only.

        with RayBackend(log_dir="runs/world/logs") as backend:
            backend.preflight([ResourceRequest("rollouts", 2, cpus=1)])
            kwargs = {"checkpoint": path}
            rollout = backend.spawn("actors.rollout:RolloutWorker", kwargs, name="rollout-0")
            backend.ready([rollout])
            rollout.held()  # blocks
            # returns at once
            pending = rollout.start(Rollout.sample, requests, "student", 3, sampling)
            samples = pending.result(timeout_s=60)
    """

    def __init__(self, start_timeout_s: float = 300.0, call_timeout_s: float = 600.0) -> None:
        self.start_timeout_s = start_timeout_s
        self.call_timeout_s = call_timeout_s
        self.watchdog = Watchdog()

    def report_to(self, watchdog: Watchdog) -> None:
        """Report the waits of later calls, and warnings, to `watchdog`."""
        self.watchdog = watchdog

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
        """Start one worker of `cls` ("module:Class" or a callable); does not wait, see `ready`.

        `cpus`, `gpus`: of the worker; `env`: environment variables, set before its module is
        imported.
        """
        handle = Handle(self, cls, kwargs, ResourceRequest(name, 1, cpus, gpus))
        handle.build(dict(env or {}))
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
        """Start the ranks of one torch.distributed process group, named `<name>-<rank>`; see
        `reserve`. Rank 0's node is that of the group's address.
        """
        names = [f"{name}-{rank}" for rank in range(world_size)]
        self.reserve(names, cpus, gpus)
        handles = [
            Handle(self, cls, kwargs, ResourceRequest(rank_name, 1, cpus, gpus))
            for rank_name in names
        ]
        host, port = handles[0].rendezvous()
        for rank, handle in enumerate(handles):
            handle.build({**(env or {}), **rank_environment(rank, world_size, host, port)})
        return handles

    def ready(self, handles: Sequence[Handle]) -> None:
        """Wait until every worker is constructed. Raises what a constructor raised."""
        names = ", ".join(handle.name for handle in handles)
        constructions = [handle.construction() for handle in handles]
        wait_all(constructions, self.start_timeout_s, f"starting {names}")

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @abstractmethod
    def open(self, request: ResourceRequest) -> Channel:
        """Start a Host for one worker, in a process of its own or in this one."""

    def reserve(self, names: Sequence[str], cpus: float, gpus: float) -> None:  # noqa: B027
        """Reserve `cpus` and `gpus` for each of the workers `names`, all or none (gang scheduling).

        Raises RunError when they are not free in time. Does nothing where resources are not
        counted.
        """

    @abstractmethod
    def preflight(self, requests: Sequence[ResourceRequest]) -> None:
        """Raise InputError if the cluster's nodes cannot run all workers at once."""

    @abstractmethod
    def put(self, value: R) -> Ref[R]:
        """Store a value once, for any number of calls; it is freed with its last Ref."""

    @abstractmethod
    def get(self, ref: Ref[R]) -> R:
        """Return the stored value of a Ref."""

    @abstractmethod
    def shutdown(self) -> None:
        """End every worker. Idempotent, and safe after a failure."""
