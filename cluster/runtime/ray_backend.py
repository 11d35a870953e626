"""The backend that runs every worker as a Ray actor.

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
from cluster.runtime.handle import CallResult, Channel, Ref, settle
from cluster.runtime.node_versions import NodeReport
from cluster.runtime.ray_channel import RayChannel, RayPending, send_tensors_as_bytes
from cluster.runtime.resources import ResourceRequest
from sleep_rl.contracts.errors import InputError, RunError

R = TypeVar("R")
NODE_REPORT_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 10.0
RayNode = dict[str, Any]
"""An entry of `ray.nodes()`."""


class RayBackend(Backend):
    """Runs every worker as a Ray actor: in the cluster at `address`, else at RAY_ADDRESS, else in a
    Ray instance that it starts on this node.
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

        `log_dir`: folder for the workers' output, one file each; Ray's own files are in a temporary
        folder that `shutdown` deletes. `cpus`: CPUs of a Ray instance that is started here (None:
        every core). Raises InputError when no cluster runs at the address, RunError when Ray does
        not start.
        """
        super().__init__(start_timeout_s, call_timeout_s)
        self._log_dir = os.path.abspath(log_dir) if log_dir else None
        self._channels: list[RayChannel] = []
        self._scheduling: dict[str, Any] = {}  # worker -> its bundle of a placement group
        self._checked: set[str] = set()  # ids of nodes whose versions were compared
        self._last_line = ""
        self._refused: list[ResourceRequest] = []  # by the last `preflight`
        self._autoscaling = False  # whether nodes were requested from the autoscaler
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
            _connect(address)
        else:
            self._temp_dir = ray_node.start(cpus, start_timeout_s)
        # Ray prints the death of a worker on the driver's console even with log_to_driver=False;
        # this private flag silences it.
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
                f"cluster.start_timeout_s: {cpus:g} CPU and {gpus:g} GPU for each of "
                f"{', '.join(names)} were not free within {self.start_timeout_s:g} s; other jobs "
                "use them"
            )
        for number, name in enumerate(names):
            self._scheduling[name] = PlacementGroupSchedulingStrategy(group, number)

    def preflight(self, requests: Sequence[ResourceRequest]) -> None:
        """Print the requested and the available resources, and which nodes run other versions than
        this process; each node is checked once.

        Raises InputError if the nodes cannot run all workers at once. When the same requests are
        refused a second time, the caller waits for nodes: they are requested from the autoscaler.
        """
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        amounts = [node["Resources"] for node in alive]
        self._say(resources.inventory(requests, amounts))
        try:
            resources.check(requests, amounts)
        except InputError:
            self._request_nodes(requests)
            raise
        if len(alive) > 1:
            self._check_nodes([node for node in alive if node["NodeID"] not in self._checked])

    def _request_nodes(self, requests: Sequence[ResourceRequest]) -> None:
        """Request nodes from the autoscaler, once, when the same requests are refused again."""
        from ray.autoscaler.sdk import request_resources

        if self._refused == requests and not self._autoscaling:
            self._autoscaling = True
            request_resources(bundles=resources.bundles(requests))
        self._refused = list(requests)

    def _say(self, line: str) -> None:
        """Print a line unless it was the last one: waiting for a node repeats `preflight`."""
        if line != self._last_line:
            self.watchdog.say(line)
        self._last_line = line

    def _check_nodes(self, nodes: Sequence[RayNode]) -> None:
        """Query the versions on nodes; print a warning that names those with other versions.

        Raises InputError for a node that cannot import this program, or on which the run's folder
        is missing: no worker can start there.
        """
        folder = os.path.dirname(self._log_dir) if self._log_dir else None
        reports: dict[str, NodeReport] = {}
        for name, report in self._query_nodes(nodes, folder).items():
            if isinstance(report, NodeReport):
                reports[name] = report
            elif "ModuleNotFoundError" in str(report):
                raise InputError(f"{name} cannot run this program: {report}")
            else:  # the node may be shutting down
                self.watchdog.say(f"warning: {name} did not report its versions: {report}")
        if without := node_versions.nodes_without_run_folder(reports):
            raise InputError(
                f"run.dir: {folder} is missing on {without}; it must be on a file system that all "
                "nodes share"
            )
        driver = node_versions.installed_versions()
        if other := node_versions.version_differences(driver, reports):
            self.watchdog.say(f"warning: versions differ from the driver's: {other}")
        self._checked |= {node["NodeID"] for node in nodes}

    def _query_nodes(
        self, nodes: Sequence[RayNode], folder: str | None
    ) -> dict[str, CallResult[NodeReport]]:
        """Run `node_versions.report_node` on each node; return node name -> its report or error."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        files = sorted(os.listdir(folder)) if folder and os.path.isdir(folder) else []
        task = ray.remote(num_cpus=0, max_retries=0)(node_versions.report_node)
        pendings = []
        for node in nodes:
            host = node["NodeManagerHostname"]
            ip = node["NodeManagerAddress"]
            node_id = node["NodeID"]
            on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
            result = task.options(scheduling_strategy=on_node).remote(folder, files)
            name = f"node {host} ({ip}, {node_id[:6]})"
            pendings.append(RayPending(name, "report_node", result))
        timeout_s = min(NODE_REPORT_TIMEOUT_S, self.start_timeout_s)
        results = settle(pendings, timeout_s, stacks=False)
        return dict(zip([pending.worker for pending in pendings], results, strict=True))

    def put(self, value: R) -> Ref[R]:
        import ray

        send_tensors_as_bytes()
        return Ref(ray.put(value))

    def get(self, ref: Ref[R]) -> R:
        return RayPending("object store", "get", ref.target).result(self.call_timeout_s)

    def shutdown(self) -> None:
        import ray

        try:
            if self._autoscaling and ray.is_initialized():
                from ray.autoscaler.sdk import request_resources

                request_resources(bundles=[])  # the autoscaler may remove the nodes
                self._autoscaling = False
            while self._channels and ray.is_initialized():
                self._channels.pop().kill()
        finally:
            ray.shutdown()
            if self._temp_dir:
                shutil.rmtree(self._temp_dir, ignore_errors=True)


def _connect(address: str) -> None:
    """Connect to a running cluster. Raises InputError that names cluster.address."""
    import ray

    wrong = f"cluster.address: a running Ray cluster, got {address}"
    host, _, port = address.rpartition(":")
    if port.isdigit():  # ray.init retries for minutes where nothing listens
        endpoint = (host.removeprefix("ray://"), int(port))
        try:
            socket.create_connection(endpoint, timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise InputError(f"{wrong}: {error}") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"{wrong}: {str(error).splitlines()[0]}") from error
