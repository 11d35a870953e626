"""Checks of this machine: devices, memory, disks, limits, ports. Their inputs are arguments."""

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
MIN_MEMORY = 4 * GB
MIN_SHM = 1 * GB
MIN_DISK = 5 * GB
MIN_TMP = 1 * GB
MIN_FILES = 4096
MIN_PROCESSES = 4096


def devices(torch: Mapping[str, Any], driver: str | None, needed: float, joins: bool) -> Finding:
    """Check that torch sees the GPUs of this machine, and at least as many as the config needs.

    `torch`: version, cuda (version of the build, or None), gpus (name and bytes of each); `driver`:
    version of NVIDIA's driver, None without one; `needed`: GPUs of the config; `joins`: the workers
    run in another cluster.
    """
    version = torch["version"]
    gpus = torch["gpus"]
    cuda = torch["cuda"]
    if driver and not cuda:
        return Finding(
            "devices",
            False,
            f"there is an NVIDIA driver ({driver}), but torch {version} is a build for CPUs: "
            "pip install -e '.[gpu]' in a fresh virtual environment",
        )
    if driver and not gpus:
        return Finding(
            "devices",
            False,
            f"torch {version} (CUDA {cuda}) sees no GPU with driver {driver}: install a newer "
            "driver, or check whether CUDA_VISIBLE_DEVICES or the container hides the GPUs",
        )
    if len(gpus) < needed and not joins:
        return Finding(
            "devices",
            False,
            f"the config needs {needed:g} GPUs, torch {version} sees {len(gpus)}: set "
            "cluster.address to a cluster that has them, or lower rollouts.gpus and learners.gpus",
        )
    if gpus:
        names = ", ".join(f"{name} {size / GB:.0f} GB" for name, size in gpus)
        return Finding(
            "devices", True, f"torch {version}, CUDA {cuda}, driver {driver or 'unknown'}: {names}"
        )
    return Finding("devices", True, f"torch {version} on CPU")


def nvidia_driver(where: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of the loaded NVIDIA driver; None without one. `where`: the kernel's
    file.
    """
    try:
        words = where.read_text(errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown version")


def cores_and_memory(cores: int, meminfo: str, limit: str | None) -> Finding:
    """Check the free memory against MIN_MEMORY.

    `meminfo`: text of /proc/meminfo; `limit`: the container's memory limit in bytes, "max" or None.
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
    amounts = f"{cores} CPU cores, {total / GB:.0f} GB of memory, {free / GB:.0f} GB free"
    if free < MIN_MEMORY:
        why = f"{amounts}: the demo needs 4 GB; end other processes"
        return Finding("machine", False, why)
    return Finding("machine", True, amounts)


def ports(cluster: str | None, bound: Callable[[int], bool]) -> Finding:
    """Check that the ports of `ray start` are free. The Ray that a run starts needs no fixed port.

    `cluster`: address of the Ray instance that runs on this node, if any; `bound(port)`: whether a
    process listens on the port.
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
        f"in use by another process than Ray: {what}; end it, or choose other ports with "
        "ray start --head --port=... --dashboard-port=...",
    )


def is_bound(port: int) -> bool:
    """Return whether a process of this node listens on the port."""
    with socket.socket() as probe:
        # a port in TIME_WAIT counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def shared_memory(path: str = "/dev/shm") -> Finding:
    """Check the free shared memory, which holds Ray's object store."""
    try:
        total, _, free = shutil.disk_usage(path)
    except OSError as error:
        return Finding(
            "shared memory", False, f"{path}: {error.strerror}; Ray's object store needs it"
        )
    if free < MIN_SHM:
        return Finding(
            "shared memory",
            False,
            f"{path} has {free / GB:.2g} of {total / GB:.2g} GB free, Ray's object store needs "
            f"{MIN_SHM / GB:g}: docker run --shm-size=4g, or mount a larger tmpfs there",
        )
    return Finding("shared memory", True, f"{path} has {free / GB:.3g} of {total / GB:.3g} GB free")


def disk_space(name: str, folder: str, least: int) -> Finding:
    """Check that a folder (or its nearest existing parent) is writable and has `least` bytes free.
    Leaves no file.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"doctor")
            file.flush()
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding(
            name,
            False,
            f"{folder}: cannot write into {existing} ({error.strerror}); choose another folder, or "
            "change its permissions",
        )
    if free < least:
        return Finding(
            name,
            False,
            f"{folder}: {free / GB:.2g} GB free, {least / GB:.2g} needed; free some space, or set "
            f"{name} to another disk",
        )
    return Finding(name, True, f"{folder} can be written, {free / GB:.3g} GB free")


def limits(files: tuple[int, int], processes: tuple[int, int], group: str | None) -> list[Finding]:
    """Check the limits of open files and processes.

    `files`, `processes`: (soft, hard) limits; `group`: pids.max of the container, "max" or None.
    Ray raises the soft limit of files itself.
    """

    def number(limit: int) -> str:
        return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"

    counted = [processes[0]] + ([int(group)] if group and group.strip().isdigit() else [])
    most = min(
        (limit for limit in counted if limit != resource.RLIM_INFINITY),
        default=resource.RLIM_INFINITY,
    )
    few_files = files[1] != resource.RLIM_INFINITY and files[1] < MIN_FILES
    few_processes = most != resource.RLIM_INFINITY and most < MIN_PROCESSES
    more_files = (
        f", {MIN_FILES:,} needed: /etc/security/limits.conf, or docker run --ulimit nofile=65536"
    )
    more_processes = (
        f", {MIN_PROCESSES:,} needed (threads count): ulimit -u, or docker run --pids-limit=-1"
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
    """Return the text of a small kernel file; None when it does not exist."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


def ray_here(where: str = "/tmp/ray/ray_current_cluster") -> str | None:
    """Return the address of the Ray instance that `ray start` started on this node, if any."""
    return (read_text(where) or "").strip() or None


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))
