"""What `sleep-rl doctor` looks at on this machine. Each check is given what it judges and says what
to do if it is not ok.

Nothing here starts a worker; `cluster.doctor.doctor` puts the checks in order and adds those that need
processes.
"""

from __future__ import annotations

import netrc
import os
import resource
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sleep_rl.config.schema import Config
from sleep_rl.model.shape import HUB_NAME

GB = 10**9
PORTS = {6379: "ray start --head", 8265: "Ray's dashboard and job server"}
LEAST_SHM, LEAST_DISK, LEAST_TMP = 1 * GB, 5 * GB, 1 * GB
LEAST_FILES, LEAST_PROCESSES = 4096, 4096
TRY_S = 5.0
WANDB_HOST = "api.wandb.ai"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was found, or what to do."""

    name: str
    ok: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'to do':<6} {self.name}: {' '.join(self.said.split())}"


# ---- software


def python(requires: str | None, version: str) -> Finding:
    """`requires`: pyproject's requires-python, None when sleep-rl is not installed."""
    from packaging.specifiers import SpecifierSet

    if requires is None:
        return Finding(
            "python",
            False,
            f"{version}, but sleep-rl is not installed here: pip "
            "install -e '.[cpu]' (or "
            "[gpu]) in the repository",
        )
    if not SpecifierSet(requires).contains(version, prereleases=True):
        return Finding(
            "python",
            False,
            f"{version} runs this, {requires} is needed: make a "
            "virtual environment with such "
            "a one",
        )
    return Finding("python", True, version)


def packages(requirements: Iterable[str], installed: Callable[[str], str | None]) -> list[Finding]:
    """Versions against pyproject's requirements; `installed` names a package's version. The extras
    cpu and gpu are two builds of the same vLLM, of which one is to be there.
    """
    from packaging.requirements import Requirement

    found, wrong, builds = [], [], []
    for requirement in map(Requirement, requirements):
        extra = str(requirement.marker or "")
        version = installed(requirement.name)
        if "extra" in extra and not ('"cpu"' in extra or '"gpu"' in extra):
            continue
        if "extra" in extra:
            builds += [(requirement, version)]
            if version is None:
                continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            have = "is not installed" if version is None else f"{version} is installed"
            wrong.append(
                Finding(
                    "packages",
                    False,
                    f"{requirement.name} {have}, "
                    f"{requirement.specifier} is needed: "
                    "pip install "
                    f"'{requirement.name}{requirement.specifier}'",
                )
            )
        else:
            found.append(f"{requirement.name} {version}")
    there = [requirement.name for requirement, version in builds if version]
    if builds and len(there) != 1:
        what = (
            f"{' and '.join(there)} overwrite each other: pip uninstall both, then"
            if there
            else "vLLM is missing:"
        )
        wrong.append(
            Finding(
                "packages",
                False,
                f"{what} pip install -e '.[cpu]', or '.[gpu]' on a machine with GPUs",
            )
        )
    return [*wrong, *([Finding("packages", True, ", ".join(found))] if found else [])]


def devices(torch: Mapping[str, Any], driver: str | None, asked: float, joins: bool) -> Finding:
    """`torch`: version, cuda (build, or None), gpus (name and bytes of each); `driver`: NVIDIA's,
    where there is one;
    `asked`: GPUs of the config; `joins`: the workers run in a cluster elsewhere.
    """
    version, gpus, cuda = torch["version"], torch["gpus"], torch["cuda"]
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
    """Version of the loaded NVIDIA driver, None without one."""
    try:
        words = where.read_text(errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown version")


# ---- machine


def cores_and_memory(cores: int, meminfo: str, limit: str | None) -> Finding:
    """`meminfo`: text of /proc/meminfo; `limit`: memory of the container in bytes, "max" or
    None.
    """
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in meminfo.splitlines()
        if len(line.split()) > 1
    }
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    if limit and limit.strip().isdigit():
        total, free = min(total, int(limit)), min(free, int(limit))
    said = f"{cores} CPU cores, {total / GB:.0f} GB of memory, {free / GB:.0f} GB free"
    if free < 4 * GB:
        return Finding("machine", False, f"{said}: the demo needs 4 GB; end what else runs here")
    return Finding("machine", True, said)


def ports(cluster: str | None, bound: Callable[[int], bool]) -> Finding:
    """`cluster`: address of the Ray that was started on this node, if any. A run's own Ray needs no
    fixed port.
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
    """Whether someone listens at a port of this node."""
    with socket.socket() as probe:
        # what a finished connection left behind does not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def address(where: str | None) -> Finding:
    """Whether the Ray cluster at cluster.address (or RAY_ADDRESS) takes connections."""
    if not where or where in ("local", "auto"):
        return Finding(
            "cluster",
            True,
            "the Ray of this node" if where == "auto" else "a Ray of its own on this node",
        )
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return Finding("cluster", False, f"cluster.address: HOST:PORT or auto, got {where}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TRY_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        return Finding(
            "cluster",
            False,
            f"nothing answers at {where} ({error}): start it with "
            "ray start --head, or correct "
            "cluster.address",
        )
    return Finding("cluster", True, f"{where} answers")


def shared_memory(path: str = "/dev/shm") -> Finding:
    """Ray's object store lies there."""
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
    """Whether a folder, or what will hold it, can be written to and has room. Nothing is left
    behind.
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
    """Soft and hard limits; `group`: pids.max of the container, "max" or None. Ray raises the soft
    limit of files itself.
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


# ---- services


def wandb_login(environment: Mapping[str, str], home: Path, mode: str | None) -> Finding:
    """Whether there is a key, which is never shown. `mode`: the config's wandb.mode, None without a
    config.
    """
    host = (
        urlsplit(environment.get("WANDB_BASE_URL") or f"https://{WANDB_HOST}").hostname
        or WANDB_HOST
    )
    files = (
        [Path(environment["NETRC"])]
        if environment.get("NETRC")
        else [home / ".netrc", home / "_netrc"]
    )
    there = "in WANDB_API_KEY" if environment.get("WANDB_API_KEY") else ""
    for file in files:
        try:
            entry = None if there else netrc.netrc(str(file)).authenticators(host)
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError) as error:
            why = getattr(error, "strerror", None) or "it cannot be parsed"
            return Finding(
                "wandb",
                mode in (None, "off", "offline"),
                f"{file}: {why}; wandb login writes it anew (wandb.mode=online needs it)",
            )
        there = there or (f"for {host} in {file}" if entry else "")
    if there:
        return Finding("wandb", True, f"a key is there ({there})")
    if mode == "online":
        return Finding(
            "wandb",
            False,
            "wandb.mode is online and there is no key: wandb login, or wandb.mode=offline",
        )
    return Finding(
        "wandb",
        True,
        f"wandb.mode is {mode or 'off by default'}; no key is there, "
        "and online would need one "
        "(wandb login)",
    )


def hub_names(config: Config) -> tuple[list[str], list[str]]:
    """(models, data sets) that a config names by their name on the hub."""
    named = [
        config.model.base,
        *config.model.teachers,
        config.reward.model if config.reward.semantic != "none" else None,
    ]
    path = getattr(getattr(config.task, config.task.name), "path", None)
    data = (path or "").partition(":")[0]
    return [n for n in named if n and _on_hub(n)], [data] if data and _on_hub(data) else []


def _on_hub(name: str) -> bool:
    return not Path(name).exists() and HUB_NAME.fullmatch(name) is not None


def hub(
    endpoint: str,
    cache: str,
    offline: bool,
    models: list[str],
    data: list[str],
    may_read: Callable[[str], str],
) -> list[Finding]:
    """`may_read(model)` asks the hub and returns what stands in the way, or nothing. Without names
    nothing needs the hub.
    """
    missing = [
        n
        for kind, names in (("models", models), ("datasets", data))
        for n in names
        if not (Path(cache) / f"{kind}--{n.replace('/', '--')}").is_dir()
    ]
    findings = [room("hub cache", cache, LEAST_TMP)]
    if offline:
        said = (
            f"{', '.join(missing)} is not in {cache}: unset it, or copy another machine's cache"
            if missing
            else "nothing is missing"
        )
        return [*findings, Finding("hub", not missing, f"HF_HUB_OFFLINE is set; {said}")]
    try:
        urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=TRY_S
        ).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        if missing:
            said = (
                f"{', '.join(missing)} is not in {cache}: a proxy in HTTPS_PROXY, a mirror "
                "in HF_ENDPOINT, or a "
                "copied cache"
            )
        else:
            said = "nothing here needs it; HF_HUB_OFFLINE=1 spares the tries"
        return [
            *findings,
            Finding("hub", not missing, f"{endpoint} cannot be reached ({why}); {said}"),
        ]
    refused = [f"{name}: {reason}" for name in models if (reason := may_read(name))]
    if refused:
        return [*findings, Finding("hub", False, f"{'; '.join(refused)}")]
    read = f"; {', '.join(models)} may be read" if models else ""
    return [*findings, Finding("hub", True, f"{endpoint} answers{read}")]


def may_read(endpoint: str, name: str) -> str:
    """What stands in the way of reading a model on the hub; empty when nothing does."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi(endpoint=endpoint).auth_check(name)
    except GatedRepoError:
        return "is gated: accept its licence on the hub, then hf auth login"
    except RepositoryNotFoundError:
        return "is not there, or private: correct the name, or hf auth login"
    except (HfHubHTTPError, OSError) as error:
        return f"cannot be asked about ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return ""


def read_text(path: str) -> str | None:
    """A small file of the kernel, or None where it is not there."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


def ray_here(where: str = "/tmp/ray/ray_current_cluster") -> str | None:
    """Address of the Ray that `ray start` left running on this node."""
    return (read_text(where) or "").strip() or None


def cores() -> int:
    return len(os.sched_getaffinity(0))
