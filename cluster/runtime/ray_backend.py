"""Where workers run: in this process ("local") or as Ray actors ("ray"), behind the same calls.

The only module that imports ray, and only once a RayBackend is made. Workers are plain classes,
named by import path, so that vllm, torch and deepspeed are imported in the worker's process only.

    with RayBackend(log_dir="runs/world/logs") as backend:
        backend.preflight([ResourceRequest("rollouts", 2, cpus=1)]) workers =
        [backend.spawn("actors.rollout:RolloutWorker", {"checkpoint": path},
        name=f"rollout-{i}") for i in range(2)] backend.ready(workers)
        workers[0].held()                                                 # blocks, like the
        worker's own method
        pending = workers[1].start(Rollout.sample, requests, "student", 3, how)  # does not
        samples = pending.result(timeout_s=60)
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from cluster.runtime import node_versions, placement
from cluster.runtime.backend import Backend, LocalBackend
from cluster.runtime.handle import (
    Channel,
    Handle,
    Host,
    Pending,
    Ref,
    RemoteError,
    ResourceRequest,
    WorkerDied,
    WorkerLate,
    settle,
    tensor_from_bytes,
    tensor_to_bytes,
    wait_all,
)
from sleep_rl.contracts.errors import InputError, RunError

__all__ = [
    "ResourceRequest",
    "Backend",
    "Handle",
    "LocalBackend",
    "Pending",
    "RayBackend",
    "Ref",
    "WorkerDied",
    "WorkerLate",
    "settle",
    "wait_all",
]

R = TypeVar("R")
NODE_S = 60.0  # that a node has to say what it runs
LOOPBACK = "127.0.0.1"
# most that our own node's store takes; it must hold a full memory state beside deltas
OBJECT_STORE_BYTES = 2 << 30


class RayHost(Host):
    """A Host in an actor's process."""

    def __init__(
        self,
        name: str,
        gpus: float,
        log_dir: str | None,
        search: list[str],
        limits_s: tuple[float, float],
    ) -> None:
        super().__init__(name)
        self._limits_s = limits_s  # of construction, and of a call
        # what the driver can import, this can
        sys.path += [path for path in search if path not in sys.path]
        if gpus == 0:  # Ray hides the other actors' GPUs only from an actor that asked for some
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if log_dir:  # file descriptors, not sys.stdout: C++ and child processes write there, too
            os.makedirs(log_dir, exist_ok=True)
            log = os.open(
                os.path.join(log_dir, f"{name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
            )
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)

    def address(self) -> str:
        import ray

        return ray.util.get_node_ip_address()

    def attempt(self, function: Callable[[], Any]) -> Any:
        limit_s = self._limits_s[self.worker is not None]
        # into this worker's log, just before it is given up
        faulthandler.dump_traceback_later(0.95 * limit_s)
        try:
            result = super().attempt(function)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if isinstance(result, RemoteError):
            with suppress(OSError):  # a full disk is reported by what is returned
                print(result.trace, file=sys.stderr, flush=True)
        _send_tensors_as_bytes()
        return result


def _send_tensors_as_bytes() -> None:
    """Lets torch tensors cross Ray as out-of-band buffers instead of torch's own pickles (57 MB:
    10x faster, measured).

    A tensor is copied out of the store on arrival, so that writing into it can never change what
    others read; numpy arrays arrive as read-only views. Called before anything is sent: a process
    without torch has no tensors to send.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        from ray.util import register_serializer

        register_serializer(
            torch.Tensor, serializer=tensor_to_bytes, deserializer=tensor_from_bytes
        )


class _RayPending(Pending[R]):
    def __init__(self, worker: str, method: str, answer: Any) -> None:
        super().__init__(worker, method)
        self._answer = answer

    def ready(self, wait_s: float) -> bool:
        import ray

        return bool(ray.wait([self._answer], timeout=wait_s)[0])

    def outcome(self, wait_s: float, limit_s: float) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayError

        try:
            return ray.get(self._answer, timeout=wait_s)
        except GetTimeoutError:
            raise self.late(limit_s) from None
        except RayActorError as error:
            raise WorkerDied(
                f"worker {self.worker} died during {self.method}: {_cause(str(error))}{self.told()}"
            ) from error
        except OutOfMemoryError as error:
            # Ray ends the worker; its error says so, and is no RayActorError
            raise WorkerDied(
                f"worker {self.worker} died during {self.method}: the memory of its "
                "node was nearly full"
                f"{_memory(str(error))}, and Ray ended it"
            ) from error
        except RayError as error:
            raise RunError(
                f"worker {self.worker}: {self.method} failed: {type(error).__name__}: "
                f"{_cause(str(error))}{self.told()}"
            ) from error


def _cause(text: str) -> str:
    """The one sentence of Ray's long messages that says why."""
    for mark in ("Worker exit detail: ", "The actor is dead because "):
        if mark in text:
            return text.split(mark, 1)[1].splitlines()[0].split(". ")[0].rstrip(".")
    return text.strip().splitlines()[-1]  # of a traceback the last line


def _memory(text: str) -> str:
    found = re.search(r"\b([\d.]+ ?[GM]i?B) ?/ ?([\d.]+ ?[GM]i?B)", text)
    return f" ({found[1]} of {found[2]})" if found else ""


class _RayChannel(Channel):
    def __init__(
        self,
        ask: ResourceRequest,
        log_dir: str | None,
        limits_s: tuple[float, float],
        place: Any = "DEFAULT",
    ) -> None:
        import ray

        self._name = ask.name
        self._actor = (
            ray.remote(RayHost)
            .options(
                num_cpus=ask.cpus,
                num_gpus=ask.gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=place,
            )
            .remote(ask.name, ask.gpus, log_dir, sys.path, limits_s)
        )

    def send(
        self, verb: Callable[..., Any], label: str, /, *args: Any, **kwargs: Any
    ) -> Pending[Any]:
        _send_tensors_as_bytes()
        return _RayPending(
            self._name, label, getattr(self._actor, verb.__name__).remote(*args, **kwargs)
        )

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)


class RayBackend(Backend):
    """Every worker an actor: in the cluster at `address`, at RAY_ADDRESS, or in a Ray of our own on
    this node.

    `cpus` limits our own Ray only (default: every core). `log_dir`: folder for the workers' output,
    one file each; Ray's own files lie in a temporary folder that goes with `shutdown`.
    """

    def __init__(
        self,
        address: str | None = None,
        start_timeout_s: float = 300.0,
        call_timeout_s: float = 600.0,
        log_dir: str | None = None,
        cpus: int | None = None,
    ) -> None:
        super().__init__(start_timeout_s, call_timeout_s)
        self._log_dir = os.path.abspath(log_dir) if log_dir else None
        self._channels: list[_RayChannel] = []
        self._places: dict[str, Any] = {}  # worker -> its bundle of a placement group
        self._asked: set[str] = set()  # ids of nodes that said what they run
        self._said = ""
        self._refused: list[ResourceRequest] = []
        self._called = False  # whether an autoscaler was asked for nodes
        self._temp_dir = ""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's coming default; silences its warning
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray._private.worker

        if ray.is_initialized():
            raise RunError(
                "cluster: this process is connected to Ray already; one RayBackend at a time"
            )
        address = address or os.environ.get("RAY_ADDRESS")
        if address and address != "local":
            self._join(address)
        else:
            self._start(cpus)
        # Ray prints each death of a worker on the driver's console, whatever log_to_driver says.
        # Its own switch:
        ray._private.worker._worker_logs_enabled = False

    def _join(self, address: str) -> None:
        import ray

        host, _, port = address.rpartition(":")
        if port.isdigit():  # ray.init tries for minutes where nothing answers
            try:
                socket.create_connection(
                    (host.removeprefix("ray://"), int(port)), timeout=10
                ).close()
            except OSError as error:
                raise InputError(
                    f"cluster.address: a running Ray cluster, got {address}: {error}"
                ) from error
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"cluster.address: a running Ray cluster, got {address}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    def _start(self, cpus: int | None) -> None:
        """A Ray of our own. On a busy machine its raylet aborts when its helpers are not up after
        15 s (a limit that cannot be set), so a start that timed out is tried again until our own
        deadline.
        """
        memory = min(OBJECT_STORE_BYTES, max(shutil.disk_usage("/dev/shm").free // 2, 128 << 20))
        # Unix sockets inside: at most 107 bytes
        self._temp_dir = tempfile.mkdtemp(prefix="sleep", dir="/tmp")
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            try:
                return _start_node(
                    deadline, num_cpus=cpus, object_store_memory=memory, _temp_dir=self._temp_dir
                )
            except Exception as error:  # Ray raises bare Exceptions here
                if "timed out" not in str(error) or time.monotonic() > deadline:
                    raise RunError(
                        "cluster.start_timeout_s: Ray did not start within "
                        f"{self.start_timeout_s:g} s: "
                        f"{str(error).splitlines()[0]} (its logs: "
                        f"{self._temp_dir})"
                    ) from error

    def open(self, ask: ResourceRequest) -> Channel:
        limits_s, place = (
            (self.start_timeout_s, self.call_timeout_s),
            self._places.get(ask.name, "DEFAULT"),
        )
        self._channels.append(_RayChannel(ask, self._log_dir, limits_s, place))
        return self._channels[-1]

    def reserve(self, names: Sequence[str], cpus: float, gpus: float) -> None:
        from ray.util import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import (
            PlacementGroupSchedulingStrategy as SlotAssignment,
        )

        bundles = placement.bundles([ResourceRequest("rank", len(names), cpus, gpus)])
        if len(bundles) > 1:
            group = placement_group(bundles, strategy="PACK")  # on as few nodes as they fit on
            if not group.wait(self.start_timeout_s):
                remove_placement_group(group)
                raise RunError(
                    f"cluster.start_timeout_s: no room for {', '.join(names)} "
                    "together within "
                    f"{self.start_timeout_s:g} s ({cpus:g} CPU and {gpus:g} GPU "
                    "each); other jobs hold it"
                )
            self._places |= {
                name: SlotAssignment(group, number) for number, name in enumerate(names)
            }

    def preflight(self, asks: Sequence[ResourceRequest]) -> None:
        """Says what is asked and what is there, and which nodes run something else than this
        process; asks each once. Who asks again after a refusal waits for nodes: an autoscaler hears
        of it.
        """
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = [node["Resources"] for node in alive]
        self._say(placement.inventory(asks, nodes))
        try:
            placement.check(asks, nodes)
        except InputError:
            self._call_nodes(asks)
            raise
        if len(alive) > 1:
            self._compare([node for node in alive if node["NodeID"] not in self._asked])

    def _call_nodes(self, asks: Sequence[ResourceRequest]) -> None:
        from ray.autoscaler.sdk import request_resources

        if self._refused == asks and not self._called:
            self._called = True
            request_resources(bundles=placement.bundles(asks))
        self._refused = list(asks)

    def _say(self, line: str) -> None:
        """Prints a line unless it was the last one: who waits for a node asks again and again."""
        if line != self._said:
            self.watch.say(line)
        self._said = line

    def _compare(self, nodes: Sequence[dict[str, Any]]) -> None:
        """Asks nodes what they run. Raises InputError when one cannot import this program or does
        not see the run's folder: no worker can start there; a node with other versions is named on
        the console.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        folder = os.path.dirname(self._log_dir) if self._log_dir else None
        names = sorted(os.listdir(folder)) if folder and os.path.isdir(folder) else []
        look = ray.remote(num_cpus=0, max_retries=0)(node_versions.look)
        pendings = []
        for node in nodes:
            name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})"
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            pendings.append(
                _RayPending(
                    name, "look", look.options(scheduling_strategy=there).remote(folder, names)
                )
            )
        answers = dict(
            zip(
                [p.worker for p in pendings],
                settle(pendings, min(NODE_S, self.start_timeout_s), stacks=False),
            )
        )
        said = {
            name: answer
            for name, answer in answers.items()
            if isinstance(answer, node_versions.Node)
        }
        for name, error in answers.items():
            if isinstance(error, Exception):
                if "ModuleNotFoundError" in str(error):
                    raise InputError(f"{name} cannot run this program: {error}")
                # it may be about to leave
                self.watch.say(f"warning: {name} does not say what it runs: {error}")
        if blind := node_versions.unseen(said):
            raise InputError(
                f"run.dir: {folder} is not seen from {blind}; it must lie where every node sees it"
            )
        if other := node_versions.differences(node_versions.installed(), said):
            self.watch.say(f"warning: not every node runs what the driver runs: {other}")
        self._asked |= {node["NodeID"] for node in nodes}

    def put(self, value: R) -> Ref[R]:
        import ray

        _send_tensors_as_bytes()
        return Ref(ray.put(value))

    def get(self, ref: Ref[R]) -> R:
        return _RayPending("object store", "get", ref.held).result(self.call_timeout_s)

    def shutdown(self) -> None:
        import ray

        try:
            if self._called and ray.is_initialized():
                from ray.autoscaler.sdk import request_resources

                request_resources(bundles=[])  # they may go
                self._called = False
            while self._channels and ray.is_initialized():
                self._channels.pop().kill()
        finally:
            ray.shutdown()
            if self._temp_dir:
                shutil.rmtree(self._temp_dir, ignore_errors=True)


def _start_node(deadline: float, **options: Any) -> None:
    """`ray.init` with three corrections of Ray 2.60: it waits for a raylet that is slow but alive
    until our deadline instead of 30 s, a start that fails leaves no processes behind, and its
    servers listen on the loopback address only (Ray would look for another one, and then listen on
    all).
    """
    import ray
    from ray._private import node, services

    ask, start, resolve = (
        services.get_node,
        node.Node.start_ray_processes,
        services.resolve_ip_for_localhost,
    )
    nodes: list[Any] = []

    def start_and_remember(self: Any) -> None:
        nodes.append(self)
        start(self)

    def ask_patiently(*args: Any) -> Any:
        while True:
            try:
                return ask(*args)
            except RuntimeError:  # not there yet; raised again, Ray's own 30 s apply
                time.sleep(0.2)
                dead = [kind for each in nodes for kind, _ in each.dead_processes()]
                if "raylet" in dead or time.monotonic() > deadline:
                    raise

    services.get_node, node.Node.start_ray_processes = ask_patiently, start_and_remember
    services.resolve_ip_for_localhost = str
    try:
        ray.init(
            address="local",
            _node_ip_address=LOOPBACK,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except BaseException:  # Ctrl-C and SIGTERM, too
        for each in nodes:
            each.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        ray.shutdown()
        raise
    finally:
        services.get_node, node.Node.start_ray_processes, services.resolve_ip_for_localhost = (
            ask,
            start,
            resolve,
        )
