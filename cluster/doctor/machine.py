"""Checks of this machine: devices, memory, disks, limits, ports. Each is given what it judges."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.doctor.finding import GB, Finding

PORTS = {6379: "ray start --head", 8265: "Ray's dashboard and job server"}
LEAST_MEMORY = 4 * GB
LEAST_SHM = 1 * GB
LEAST_DISK = 5 * GB
LEAST_TMP = 1 * GB
LEAST_FILES = 4096
LEAST_PROCESSES = 4096


def devices(torch: Mapping[str, Any], driver: str | None, asked: float, joins: bool) -> Finding:
    """Check that torch sees the GPUs that are here, and as many as the config asks for.

    `torch`: version, cuda (build, or None), gpus (name and bytes of each); `driver`: NVIDIA's
    version, None without one; `asked`: GPUs of the config; `joins`: the workers run in a cluster
    elsewhere.
    """
    version = torch["version"]
    gpus = torch["gpus"]
    cuda = torch["cuda"]
    if driver and not cuda:
        return Finding(
            "devices",
            False,
            f"an NVIDIA driver ({driver}) is here, but torch "
            f"{version} is a build for CPUs: "
            "pip install -e '.[gpu]' in a fresh virtual environment",
        )
    if driver and not gpus:
        return Finding(
            "devices",
            False,
            f"torch {version} (CUDA {cuda}) sees no GPU behind "
            f"driver {driver}: a newer "
            "driver, or GPUs that CUDA_VISIBLE_DEVICES or the "
            "container does not hide",
        )
    if len(gpus) < asked and not joins:
        return Finding(
            "devices",
            False,
            f"the config asks for {asked:g} GPUs, torch {version} "
            f"sees {len(gpus)}: "
            "cluster.address of "
            "a cluster that has them, or fewer in rollouts.gpus and "
            "learners.gpus",
        )
    if gpus:
        names = ", ".join(f"{name} {size / GB:.0f} GB" for name, size in gpus)
        return Finding(
            "devices", True, f"torch {version}, CUDA {cuda}, driver {driver or 'unknown'}: {names}"
        )
    return Finding("devices", True, f"torch {version} on CPU")


def nvidia_driver(where: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of the loaded NVIDIA driver, None without one."""
    try:
        words = where.read_text(errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown version")


def cores_and_memory(cores: int, meminfo: str, limit: str | None) -> Finding:
    """Check the free memory.

    `meminfo`: text of /proc/meminfo; `limit`: memory of the container in bytes, "max" or None.
    """
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in meminfo.splitlines()
        if len(line.split()) > 1
    }
    total = sizes["MemTotal"]
    free = sizes["MemAvailable"]
    if limit and limit.strip().isdigit():
        total = min(total, int(limit))
        free = min(free, int(limit))
    said = f"{cores} CPU cores, {total / GB:.0f} GB of memory, {free / GB:.0f} GB free"
    if free < LEAST_MEMORY:
        return Finding("machine", False, f"{said}: the demo needs 4 GB; end what else runs here")
    return Finding("machine", True, said)


def ports(cluster: str | None, bound: Callable[[int], bool]) -> Finding:
    """Check that the ports of `ray start` are free. A run's own Ray needs no fixed port.

    `cluster`: address of the Ray that was started on this node, if any; `bound(port)`: whether
    somebody listens there.
    """
    taken = [port for port in PORTS if bound(port)]
    if not taken:
        return Finding("ports", True, f"{' and '.join(map(str, PORTS))} are free for Ray")
    if cluster:
        return Finding("ports", True, f"a Ray cluster was started on this node ({cluster})")
    what = "; ".join(f"{port} ({PORTS[port]})" for port in taken)
    return Finding(
        "ports",
        False,
        f"taken by something that is no Ray of this node: {what}; end "
        "it, or choose others with "
        "ray start --head --port=... --dashboard-port=...",
    )


def is_bound(port: int) -> bool:
    """Return whether somebody listens at a port of this node."""
    with socket.socket() as probe:
        # what a finished connection left behind does not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def shared_memory(path: str = "/dev/shm") -> Finding:
    """Check the room for Ray's object store, which lies there."""
    try:
        total, _, free = shutil.disk_usage(path)
    except OSError as error:
        return Finding(
            "shared memory", False, f"{path}: {error.strerror}; Ray's object store needs it"
        )
    if free < LEAST_SHM:
        return Finding(
            "shared memory",
            False,
            f"{path} has {free / GB:.2g} of {total / GB:.2g} "
            "GB free, Ray's object "
            "store wants "
            f"{LEAST_SHM / GB:g}: docker run --shm-size=4g, "
            "or mount a larger tmpfs "
            "there",
        )
    return Finding("shared memory", True, f"{path} has {free / GB:.3g} of {total / GB:.3g} GB free")


def room(name: str, folder: str, least: int) -> Finding:
    """Check that a folder, or the one that will hold it, can be written and has `least` bytes free.
    Nothing is left behind.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"doctor")
            file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(
            name,
            False,
            f"{folder}: cannot write into {place} ({error.strerror}); "
            "give another folder, or its "
            "rights",
        )
    if free < least:
        return Finding(
            name,
            False,
            f"{folder}: {free / GB:.2g} GB free, {least / GB:.2g} "
            f"wanted; make room, or set {name} "
            "elsewhere",
        )
    return Finding(name, True, f"{folder} can be written, {free / GB:.3g} GB free")


def limits(files: tuple[int, int], processes: tuple[int, int], group: str | None) -> list[Finding]:
    """Check how many open files and processes are allowed.

    `files`, `processes`: soft and hard limits; `group`: pids.max of the container, "max" or None.
    Ray raises the soft limit of files itself.
    """

    def number(limit: int) -> str:
        return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"

    counted = [processes[0]] + ([int(group)] if group and group.strip().isdigit() else [])
    most = min(
        (limit for limit in counted if limit != resource.RLIM_INFINITY),
        default=resource.RLIM_INFINITY,
    )
    few_files = files[1] != resource.RLIM_INFINITY and files[1] < LEAST_FILES
    few_processes = most != resource.RLIM_INFINITY and most < LEAST_PROCESSES
    more_files = (
        f", {LEAST_FILES:,} wanted: /etc/security/limits.conf, or docker run --ulimit nofile=65536"
    )
    more_processes = (
        f", {LEAST_PROCESSES:,} wanted (threads count): ulimit -u, or docker run --pids-limit=-1"
    )
    return [
        Finding(
            "open files",
            not few_files,
            f"at most {number(files[1])}{more_files if few_files else ''}",
        ),
        Finding(
            "processes",
            not few_processes,
            f"at most {number(most)}{more_processes if few_processes else ''}",
        ),
    ]


def read_text(path: str) -> str | None:
    """Return a small file of the kernel, None where it is not there."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


def ray_here(where: str = "/tmp/ray/ray_current_cluster") -> str | None:
    """Return the address of the Ray that `ray start` left running on this node, if any."""
    return (read_text(where) or "").strip() or None


def cores() -> int:
    return len(os.sched_getaffinity(0))
