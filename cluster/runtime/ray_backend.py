"""The backend that runs every worker as an actor of Ray.

Files named ray_* are the only ones in cluster/runtime that import ray, and they do so only once a
RayBackend is made.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from typing import Any, TypeVar

from cluster.runtime import node_versions, ray_node, resources
from cluster.runtime.backend import Backend
from cluster.runtime.handle import Channel, Ref, settle
from cluster.runtime.ray_channel import RayChannel, RayPending, send_tensors_as_bytes
from cluster.runtime.resources import ResourceRequest
from sleep_rl.contracts.errors import InputError, RunError

R = TypeVar("R")
NODE_S = 60.0  # that a node has to say what it runs
CONNECT_S = 10.0  # that the address of a cluster has to take a connection
Node = dict[str, Any]
"""A node as `ray.nodes` lists it."""


class RayBackend(Backend):
    """Every worker an actor: in the cluster at `address`, at RAY_ADDRESS, or in a Ray of our own on
    this node.
    """

    def __init__(
        self,
        address: str | None = None,
        start_timeout_s: float = 300.0,
        call_timeout_s: float = 600.0,
        log_dir: str | None = None,
        cpus: int | None = None,
    ) -> None:
        """Connect to Ray, or start it.

        `log_dir`: folder for the workers' output, one file each; Ray's own files lie in a temporary
        folder that goes with `shutdown`. `cpus` limits our own Ray only (None: every core).
        """
        super().__init__(start_timeout_s, call_timeout_s)
        self._log_dir = os.path.abspath(log_dir) if log_dir else None
        self._channels: list[RayChannel] = []
        self._scheduling: dict[str, Any] = {}  # worker -> its bundle of a placement group
        self._compared: set[str] = set()  # ids of nodes that said what they run
        self._last_line = ""
        self._refused: list[ResourceRequest] = []
        self._scaling = False  # whether an autoscaler was asked for nodes
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
            _join(address)
        else:
            self._temp_dir = ray_node.start(cpus, start_timeout_s)
        # Ray prints each death of a worker on the driver's console, whatever log_to_driver says.
        # Its own switch:
        ray._private.worker._worker_logs_enabled = False

    def open(self, request: ResourceRequest) -> Channel:
        limits_s = (self.start_timeout_s, self.call_timeout_s)
        scheduling = self._scheduling.get(request.name, "DEFAULT")
        channel = RayChannel(request, self._log_dir, limits_s, scheduling)
        self._channels.append(channel)
        return channel

    def reserve(self, names: Sequence[str], cpus: float, gpus: float) -> None:
        from ray.util import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundles = resources.bundles([ResourceRequest("rank", len(names), cpus, gpus)])
        if len(bundles) < 2:
            return
        group = placement_group(bundles, strategy="PACK")  # on as few nodes as they fit on
        if not group.wait(self.start_timeout_s):
            remove_placement_group(group)
            raise RunError(
                f"cluster.start_timeout_s: no room for {', '.join(names)} together within "
                f"{self.start_timeout_s:g} s ({cpus:g} CPU and {gpus:g} GPU each); other jobs hold "
                "it"
            )
        for number, name in enumerate(names):
            self._scheduling[name] = PlacementGroupSchedulingStrategy(group, number)

    def preflight(self, requests: Sequence[ResourceRequest]) -> None:
        """Print what is asked and what the nodes have, and which nodes run something else than this
        process; each node is asked once.

        Raises InputError if the workers can never all run at once. Whoever asks again after that
        waits for nodes: an autoscaler is asked for them.
        """
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        amounts = [node["Resources"] for node in alive]
        self._say(resources.inventory(requests, amounts))
        try:
            resources.check(requests, amounts)
        except InputError:
            self._ask_autoscaler(requests)
            raise
        if len(alive) > 1:
            self._compare([node for node in alive if node["NodeID"] not in self._compared])

    def _ask_autoscaler(self, requests: Sequence[ResourceRequest]) -> None:
        """Ask for nodes, once, when the same requests are refused a second time."""
        from ray.autoscaler.sdk import request_resources

        if self._refused == requests and not self._scaling:
            self._scaling = True
            request_resources(bundles=resources.bundles(requests))
        self._refused = list(requests)

    def _say(self, line: str) -> None:
        """Print a line unless it was the last one: who waits for a node asks again and again."""
        if line != self._last_line:
            self.watch.say(line)
        self._last_line = line

    def _compare(self, nodes: Sequence[Node]) -> None:
        """Ask nodes what they run; name those with other versions on the console.

        Raises InputError for a node that cannot import this program, or does not see the run's
        folder: no worker can start there.
        """
        folder = os.path.dirname(self._log_dir) if self._log_dir else None
        answers: dict[str, node_versions.Node] = {}
        for name, answer in self._look(nodes, folder).items():
            if isinstance(answer, node_versions.Node):
                answers[name] = answer
            elif "ModuleNotFoundError" in str(answer):
                raise InputError(f"{name} cannot run this program: {answer}")
            else:  # it may be about to leave
                self.watch.say(f"warning: {name} does not say what it runs: {answer}")
        if blind := node_versions.unseen(answers):
            raise InputError(
                f"run.dir: {folder} is not seen from {blind}; it must lie where every node sees it"
            )
        if other := node_versions.differences(node_versions.installed(), answers):
            self.watch.say(f"warning: not every node runs what the driver runs: {other}")
        self._compared |= {node["NodeID"] for node in nodes}

    def _look(
        self, nodes: Sequence[Node], folder: str | None
    ) -> dict[str, node_versions.Node | InputError | RunError]:
        """Run `node_versions.look` on each node; return its answer or error by the node's name."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        files = sorted(os.listdir(folder)) if folder and os.path.isdir(folder) else []
        look = ray.remote(num_cpus=0, max_retries=0)(node_versions.look)
        pendings = []
        for node in nodes:
            host = node["NodeManagerHostname"]
            ip = node["NodeManagerAddress"]
            node_id = node["NodeID"]
            on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
            answer = look.options(scheduling_strategy=on_node).remote(folder, files)
            pendings.append(RayPending(f"node {host} ({ip}, {node_id[:6]})", "look", answer))
        answers = settle(pendings, min(NODE_S, self.start_timeout_s), stacks=False)
        return dict(zip([pending.worker for pending in pendings], answers, strict=True))

    def put(self, value: R) -> Ref[R]:
        import ray

        send_tensors_as_bytes()
        return Ref(ray.put(value))

    def get(self, ref: Ref[R]) -> R:
        return RayPending("object store", "get", ref.held).result(self.call_timeout_s)

    def shutdown(self) -> None:
        import ray

        try:
            if self._scaling and ray.is_initialized():
                from ray.autoscaler.sdk import request_resources

                request_resources(bundles=[])  # the nodes may go
                self._scaling = False
            while self._channels and ray.is_initialized():
                self._channels.pop().kill()
        finally:
            ray.shutdown()
            if self._temp_dir:
                shutil.rmtree(self._temp_dir, ignore_errors=True)


def _join(address: str) -> None:
    """Connect to a running cluster. Raises InputError that names cluster.address."""
    import ray

    wrong = f"cluster.address: a running Ray cluster, got {address}"
    host, _, port = address.rpartition(":")
    if port.isdigit():  # ray.init tries for minutes where nothing answers
        endpoint = (host.removeprefix("ray://"), int(port))
        try:
            socket.create_connection(endpoint, timeout=CONNECT_S).close()
        except OSError as error:
            raise InputError(f"{wrong}: {error}") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"{wrong}: {str(error).splitlines()[0]}") from error
