"""Start a Ray instance on this node, with patches of Ray 2.60 for what its options cannot set.

This is the one place that replaces private functions of Ray, each only while `ray.init` runs:

- `services.get_node`: Ray gives its raylet 30 s to register, which a busy machine exceeds. It is
  retried until our own deadline, as long as the raylet runs.
- `node.Node.start_ray_processes`: records the node, so that a start that fails (also by Ctrl-C)
  leaves no processes behind; Ray itself does not end them.
- `services.resolve_ip_for_localhost`: Ray replaces 127.0.0.1 by the machine's address, and its
  servers then listen on all interfaces. They stay on the loopback address.

A new version of Ray may rename them: the import below then fails at the first start, and the `ray`
tests of tests/cluster/runtime/test_ray_backend.py fail.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sleep_rl.contracts.errors import RunError, one_line

LOOPBACK = "127.0.0.1"
# of the object store, which must hold a full memory state beside deltas
MAX_OBJECT_STORE_BYTES = 2 << 30
MIN_OBJECT_STORE_BYTES = 128 << 20
POLL_S = 0.2


def start(cpus: int | None, start_timeout_s: float) -> str:
    """Start Ray and connect to it; return its temporary folder, which the caller removes.

    `cpus`: CPUs that Ray schedules; None: every core. On a busy machine a raylet aborts when its
    agents are not up after 15 s (a limit that cannot be set), so a start that timed out is retried
    until `start_timeout_s`. Raises RunError.
    """
    free_shm = shutil.disk_usage("/dev/shm").free
    memory = min(MAX_OBJECT_STORE_BYTES, max(free_shm // 2, MIN_OBJECT_STORE_BYTES))
    # short: the paths of Unix sockets inside have at most 107 bytes
    folder = tempfile.mkdtemp(prefix="sleep", dir="/tmp")
    deadline = time.monotonic() + start_timeout_s
    while True:
        try:
            _start_once(deadline, cpus, memory, folder)
            return folder
        except Exception as error:  # Ray raises bare Exceptions here
            reason = f"{one_line(error)} (its logs: {folder})"
            if "timed out" not in str(error):
                raise RunError(f"Ray did not start: {reason}") from error
            if time.monotonic() > deadline:
                raise RunError(
                    f"cluster.start_timeout_s: Ray did not start within {start_timeout_s:g} s: "
                    f"{reason}"
                ) from error


def _start_once(deadline: float, cpus: int | None, memory: int, folder: str) -> None:
    import ray

    nodes: list[Any] = []
    try:
        with _patched(nodes, deadline):
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=memory,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address=LOOPBACK,
                _temp_dir=folder,
            )
    except BaseException:  # Ctrl-C and SIGTERM, too
        for node in nodes:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        ray.shutdown()
        raise


@contextmanager
def _patched(nodes: list[Any], deadline: float) -> Iterator[None]:
    """Replace the three functions of the header; started nodes are appended to `nodes`."""
    from ray._private import services
    from ray._private.node import Node

    get_node = services.get_node
    start_processes = Node.start_ray_processes
    resolve = services.resolve_ip_for_localhost

    def start_and_record(node: Any) -> None:
        nodes.append(node)
        start_processes(node)

    services.get_node = _retrying(get_node, nodes, deadline)
    services.resolve_ip_for_localhost = str
    Node.start_ray_processes = start_and_record
    try:
        yield
    finally:
        services.get_node = get_node
        services.resolve_ip_for_localhost = resolve
        Node.start_ray_processes = start_processes


def _retrying(
    get_node: Callable[..., Any], nodes: list[Any], deadline: float
) -> Callable[..., Any]:
    """Return `get_node` with retries while the raylet of `nodes` runs, until the deadline."""

    def get(*args: Any) -> Any:
        while True:
            try:
                return get_node(*args)
            except RuntimeError:  # not registered yet; raised again, Ray's own 30 s apply
                time.sleep(POLL_S)
                dead = [kind for node in nodes for kind, _ in node.dead_processes()]
                if "raylet" in dead or time.monotonic() > deadline:
                    raise

    return get
