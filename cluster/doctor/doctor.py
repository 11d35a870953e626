"""`sleep-rl doctor`: check what a run needs of this machine and of the services it uses. Each check
prints one line, `ok` or `to do`, and has a deadline.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from actors.environment import cpu_environment
from cluster.doctor import machine, processes, services, software
from cluster.doctor.finding import Finding
from cluster.doctor.processes import query_process, with_deadline
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.journal.text import end_of_log
from sleep_rl.plan.plan import plan
from sleep_rl.plan.render import render
from sleep_rl.plan.types import Plan

# the file that cluster.doctor.probe writes; that module is not imported here: it imports torch, Ray
RESULT = "result.json"
PLUGIN = "sleep_rl"
CHECK_S = 20.0
PLAN_S = 120.0
IMPORT_S = 300.0
PROBE_S = 900.0
HUB_NAME_S = 5.0  # for each model on the hub
TORCH_REPORT = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
properties = [torch.cuda.get_device_properties(i) for i in range(count)]
gpus = [[p.name, p.total_memory] for p in properties]
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def doctor(
    path: str | None, overrides: Sequence[str], quick: bool, say: Callable[[str], object]
) -> int:
    """Run every check and print each finding as it comes.

    `path`: a config that is planned, and whose needs are checked; `quick`: skip the probe; `say`:
    prints a line. Return 0 when every finding is ok, else 1.
    """
    todo = 0
    for finding in _findings(path, overrides, quick):
        say(str(finding))
        if not finding.ok:
            todo += 1
    say(f"{todo} to do" if todo else "all is ok")
    return int(todo > 0)


def _findings(path: str | None, overrides: Sequence[str], quick: bool) -> Iterator[Finding]:
    yield from _software()
    planned: Plan | None = None
    if path is not None:
        plans: list[Plan] = []
        yield from with_deadline(PLAN_S, "config", lambda: check_config(path, overrides, plans))
        planned = plans[0] if plans else None
    config = planned.config if planned else Config()
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    yield from with_deadline(CHECK_S, "machine", _cores_and_memory)
    gpus: list[tuple[str, int]] = []
    yield from torch_and_devices(planned, bool(address), gpus)
    yield from _cluster(address)
    yield from _disks(config, planned)
    yield from with_deadline(CHECK_S, "limits", _limits)
    mode = config.wandb.mode if path is not None else None
    yield from with_deadline(
        CHECK_S, "wandb", lambda: services.wandb_login(os.environ, Path.home(), mode)
    )
    models, data = services.hub_names(config)
    hub_s = CHECK_S + HUB_NAME_S * len(models)
    yield from with_deadline(hub_s, "hub", lambda: _hub(models, data))
    has_plugin = yield from plugin(len(gpus))
    if quick:
        return
    if not has_plugin:
        yield Finding("probe", False, "skipped until vLLM finds the plugin")
        return
    yield from probe(config.cluster.backend, "gpu" if gpus else "cpu")


def _software() -> Iterator[Finding]:
    version = platform.python_version()
    yield from with_deadline(
        CHECK_S, "python", lambda: software.python(software.requires_python(), version)
    )
    yield from with_deadline(
        CHECK_S,
        "packages",
        lambda: software.packages(software.requirements(), software.installed_version),
    )


def _cores_and_memory() -> Finding:
    meminfo = machine.read_text("/proc/meminfo") or ""
    limit = machine.read_text("/sys/fs/cgroup/memory.max")
    return machine.cores_and_memory(machine.cores(), meminfo, limit)


def _cluster(address: str | None) -> Iterator[Finding]:
    """Check what Ray needs on this node, and the cluster at `address`, if given."""
    if address:
        yield Finding("ports", True, f"not checked: runs join {address}")
    else:
        yield from with_deadline(
            CHECK_S, "ports", lambda: machine.ports(machine.ray_here(), machine.is_bound)
        )
    yield from with_deadline(CHECK_S, "cluster", lambda: services.ray_address(address))
    yield from with_deadline(CHECK_S, "shared memory", machine.shared_memory)


def _disks(config: Config, planned: Plan | None) -> Iterator[Finding]:
    least = max(machine.MIN_DISK, 3 * planned.full_bytes if planned else 0)
    folders = {
        "run.dir": (config.run.dir, least),
        "run.cache": (config.run.cache, least),
        "temporary files": ("/tmp", machine.MIN_TMP),
    }
    for name, (folder, size) in folders.items():

        def check(name: str = name, folder: str = folder, size: int = size) -> Finding:
            return machine.disk_space(name, folder, size)

        yield from with_deadline(CHECK_S, name, check)


def _limits() -> list[Finding]:
    return machine.limits(
        resource.getrlimit(resource.RLIMIT_NOFILE),
        resource.getrlimit(resource.RLIMIT_NPROC),
        machine.read_text("/sys/fs/cgroup/pids.max"),
    )


def _hub(models: list[str], data: list[str]) -> list[Finding]:
    from huggingface_hub import constants

    return services.hub(
        constants.ENDPOINT,
        constants.HF_HUB_CACHE,
        constants.is_offline_mode(),
        models,
        data,
        lambda name: services.may_read(constants.ENDPOINT, name),
    )


def check_config(path: str, overrides: Sequence[str], plans: list[Plan]) -> list[Finding]:
    """Load and plan a config; return the first line of its plan and the plan's notes as findings,
    or the error. Append the plan to `plans`.
    """
    try:
        plans.append(plan(load(path, overrides)))
    except InputError as error:
        return [Finding("config", False, str(error))]
    notes = [Finding("config", True, f"note: {note}") for note in plans[0].notes]
    return [Finding("config", True, render(plans[0]).splitlines()[0]), *notes]


def torch_and_devices(
    planned: Plan | None, joins: bool, gpus: list[tuple[str, int]]
) -> Iterable[Finding]:
    """Check the devices with torch in a process of its own, because a GPU driver may hang.

    `planned`: the config's plan; `joins`: see machine.devices. Append (name, bytes) of each GPU to
    `gpus`.
    """
    command = [sys.executable, "-c", TORCH_REPORT]
    report, finding = query_process(command, "devices", "torch", IMPORT_S, os.environ)
    if report is None:
        yield finding
        return
    gpus += report["gpus"]
    needed = planned.gpus if planned and planned.config.cluster.backend == "ray" else 0
    yield from with_deadline(
        CHECK_S, "devices", lambda: machine.devices(report, machine.nvidia_driver(), needed, joins)
    )


def plugin(gpus: int) -> Iterable[Finding]:
    """Check that vLLM registers the architectures through the entry point, and is built for this
    machine's devices. Return whether both hold. `gpus`: their number.
    """
    entries = importlib.metadata.entry_points(group="vllm.general_plugins")
    if not any(entry.name == PLUGIN for entry in entries):
        yield Finding(
            "vllm plugin",
            False,
            "vLLM's entry point sleep_rl is not installed: pip install -e . in the repository",
        )
        return False
    command = [sys.executable, "-m", "actors.plugin_check"]
    environment = {**os.environ, **cpu_environment(1)}
    report, finding = query_process(command, "vllm plugin", "vLLM", IMPORT_S, environment)
    if report is None:
        yield finding
        return False
    version = report["version"]
    if report["missing"]:
        why = (
            f"vLLM {version} does not know {', '.join(report['missing'])}: VLLM_PLUGINS, if it is "
            f"set, must name {PLUGIN}"
        )
        yield Finding("vllm plugin", False, why)
        return False
    if gpus and report["platform"] == "cpu":
        why = (
            f"vLLM {version} is the build for CPUs, but this machine has {gpus} GPUs: "
            "pip install -e '.[gpu]' in a fresh virtual environment"
        )
        yield Finding("vllm plugin", False, why)
        return False
    names = ", ".join(report["found"])
    yield Finding("vllm plugin", True, f"vLLM {version} on {report['platform']} knows {names}")
    return True


def probe(backend: str, device: str, limit_s: float = PROBE_S) -> Iterable[Finding]:
    """Run cluster.doctor.probe in a process of its own. Its files are kept when it fails."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))
    environment = {**os.environ, **(cpu_environment(1) if device == "cpu" else {})}
    command = [sys.executable, "-m", "cluster.doctor.probe", backend, device, str(folder)]
    with open(folder / "probe.log", "w") as log:
        code = processes.run_process(command, limit_s, environment, log)
    try:
        result = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        why = f"did not end within {limit_s:g} s" if code is None else f"exited with code {code}"
        result = {"ok": False, "message": f"{why}: {_end_of_log(folder / 'probe.log')}"}
    message = f"on {backend}, {device}: {result['message']}"
    if result["ok"]:
        shutil.rmtree(folder, ignore_errors=True)
        yield Finding("probe", True, message)
    else:
        yield Finding("probe", False, f"{message} (its output: {folder})")


def _end_of_log(path: Path) -> str:
    try:
        return end_of_log(path) or "it printed nothing"
    except OSError as error:
        return str(error)
