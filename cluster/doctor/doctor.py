"""`sleep-rl doctor`: is everything here that a run needs? One line per check, `ok` or what to do;
none takes forever.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from actors.environment import cpu_environment
from cluster.doctor import checks as checks
from cluster.doctor.checks import Finding
from sleep_rl.config.loader import load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.plan.plan import Plan, plan
from sleep_rl.plan.render import render

RESULT = (
    "result.json"  # of cluster.doctor.probe, which is not imported here: it brings torch and Ray
)
DISTRIBUTION, PLUGIN = "sleep-rl", "sleep_rl"
CHECK_S, PLAN_S, IMPORT_S, PROBE_S = 20.0, 120.0, 300.0, 900.0
TORCH = (
    "import json, torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "print(json.dumps({'version': "
    "torch.__version__, 'cuda': torch.version.cuda, 'gpus': [[torch.cuda.get_device_name(i), "
    "torch.cuda.get_device_properties(i).total_memory] for i in range(n)]}))"
)


def doctor(
    path: str | None, overrides: Sequence[str], quick: bool, say: Callable[[str], object]
) -> int:
    """Runs every check and says each finding at once. `path`: a config that is planned as well;
    `quick`: without the probe. Returns 0 when all is ok, 1 when something is to be done.
    """
    todo = 0
    for finding in _examine(path, overrides, quick):
        say(str(finding))
        todo += not finding.ok
    say(f"{todo} to do" if todo else "all is ok")
    return int(todo > 0)


def _examine(path: str | None, overrides: Sequence[str], quick: bool) -> Iterable[Finding]:
    config, planned = Config(), None
    yield from within(
        CHECK_S, "python", lambda: checks.python(_requires(), platform.python_version())
    )
    yield from within(CHECK_S, "packages", lambda: checks.packages(_requirements(), _version))
    if path is not None:
        plans: list[Plan] = []
        yield from within(PLAN_S, "config", lambda: planning(path, overrides, plans))
        planned = plans[0] if plans else None
        config = planned.config if planned else config
    where = config.cluster.address or os.environ.get("RAY_ADDRESS")
    yield from within(
        CHECK_S,
        "machine",
        lambda: checks.cores_and_memory(
            checks.cores(),
            checks.read_text("/proc/meminfo") or "",
            checks.read_text("/sys/fs/cgroup/memory.max"),
        ),
    )
    gpus: list = []
    yield from torch_and_devices(planned, bool(where), gpus)
    if where:
        yield Finding("ports", True, f"not asked about: runs join {where}")
    else:
        yield from within(
            CHECK_S, "ports", lambda: checks.ports(checks.ray_here(), checks.is_bound)
        )
    yield from within(CHECK_S, "cluster", lambda: checks.address(where))
    yield from within(CHECK_S, "shared memory", checks.shared_memory)
    least = max(checks.LEAST_DISK, 3 * planned.full_bytes if planned else 0)
    for name, folder, size in (
        ("run.dir", config.run.dir, least),
        ("run.cache", config.run.cache, least),
        ("temporary files", "/tmp", checks.LEAST_TMP),
    ):
        yield from within(
            CHECK_S,
            name,
            lambda name=name, folder=folder, size=size: checks.room(name, folder, size),
        )
    yield from within(
        CHECK_S,
        "limits",
        lambda: checks.limits(
            resource.getrlimit(resource.RLIMIT_NOFILE),
            resource.getrlimit(resource.RLIMIT_NPROC),
            checks.read_text("/sys/fs/cgroup/pids.max"),
        ),
    )
    mode = config.wandb.mode if path is not None else None
    yield from within(CHECK_S, "wandb", lambda: checks.wandb_login(os.environ, Path.home(), mode))
    yield from within(CHECK_S + 5 * len(checks.hub_names(config)[0]), "hub", lambda: _hub(config))
    sound = yield from plugin(len(gpus))
    if quick:
        return
    if not sound:
        yield Finding("probe", False, "left out until vLLM finds the plugin")
        return
    yield from probe(config.cluster.backend, "gpu" if gpus else "cpu")


def planning(path: str, overrides: Sequence[str], plans: list[Plan]) -> list[Finding]:
    """What `sleep-rl plan` says of a config, in one line, and its notes. Appends the plan to
    `plans` when there is one.
    """
    try:
        plans.append(plan(load(path, overrides)))
    except InputError as error:
        return [Finding("config", False, str(error))]
    notes = [Finding("config", True, f"note: {note}") for note in plans[0].notes]
    return [Finding("config", True, render(plans[0]).splitlines()[0]), *notes]


def within(
    seconds: float, name: str, check: Callable[[], Finding | list[Finding]]
) -> list[Finding]:
    """What a check finds, or that it did not answer in time or failed: a dead file server must not
    hang the others.
    """
    found: list[Finding] = []

    def run() -> None:
        try:
            result = check()
            found.extend(result if isinstance(result, list) else [result])
        except Exception as error:  # any: the other checks are still worth their lines
            found.append(
                Finding(name, False, f"cannot be checked ({type(error).__name__}: {error})")
            )

    thread = threading.Thread(target=run, daemon=True, name=f"doctor {name}")
    thread.start()
    thread.join(seconds)
    return (
        list(found)
        if found and not thread.is_alive()
        else [
            Finding(
                name,
                False,
                f"no answer within {seconds:g} s: a file system or a name server that hangs?",
            )
        ]
    )


# ---- processes


def torch_and_devices(planned: Plan | None, joins: bool, gpus: list) -> Iterable[Finding]:
    """torch is imported in a process of its own: a driver that hangs must not hang the doctor.
    Fills `gpus`.
    """
    answer, finding = ask([sys.executable, "-c", TORCH], "devices", "torch", IMPORT_S, os.environ)
    if answer is None:
        yield finding
        return
    gpus += answer["gpus"]
    asked = planned.gpus if planned and planned.config.cluster.backend == "ray" else 0
    yield from within(
        CHECK_S, "devices", lambda: checks.devices(answer, checks.nvidia_driver(), asked, joins)
    )


def plugin(gpus: int) -> Iterable[Finding]:
    """The entry point, and whether vLLM registers the architectures by it and is built for what is
    here. Returns whether all of it holds.
    """
    entries = [
        e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == PLUGIN
    ]
    if not entries:
        yield Finding(
            "vllm plugin",
            False,
            "vLLM's entry point sleep_rl is not installed: pip install -e . in the repository",
        )
        return False
    environment = {**os.environ, **cpu_environment(1)}
    answer, finding = ask(
        [sys.executable, "-m", "actors.plugin_check"], "vllm plugin", "vLLM", IMPORT_S, environment
    )
    if answer is None:
        yield finding
        return False
    if answer["missing"]:
        yield Finding(
            "vllm plugin",
            False,
            f"vLLM {answer['version']} does not know "
            f"{', '.join(answer['missing'])}: "
            f"VLLM_PLUGINS, if it is set, must name {PLUGIN}",
        )
        return False
    if gpus and answer["platform"] == "cpu":
        yield Finding(
            "vllm plugin",
            False,
            f"vLLM {answer['version']} is the build for CPUs, "
            f"and {gpus} GPUs are here: "
            "pip install -e '.[gpu]' in a fresh virtual "
            "environment",
        )
        return False
    yield Finding(
        "vllm plugin",
        True,
        f"vLLM {answer['version']} on {answer['platform']} knows {', '.join(answer['found'])}",
    )
    return True


def probe(backend: str, device: str, limit_s: float = PROBE_S) -> Iterable[Finding]:
    """A tiny life in a process of its own. What it wrote is kept when it failed."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir="/tmp"))
    environment = {**os.environ, **(cpu_environment(1) if device == "cpu" else {})}
    with open(folder / "probe.log", "w") as log:
        ended = run(
            [sys.executable, "-m", "cluster.doctor.probe", backend, device, str(folder)],
            limit_s,
            environment,
            log,
        )
    try:
        result = json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        why = f"did not end within {limit_s:g} s" if ended is None else f"ended with code {ended}"
        result = {"ok": False, "said": f"{why}: {_last_line(folder / 'probe.log')}"}
    if result["ok"]:
        shutil.rmtree(folder, ignore_errors=True)
        yield Finding("probe", True, f"on {backend}, {device}: {result['said']}")
    else:
        yield Finding(
            "probe", False, f"on {backend}, {device}: {result['said']} (its output: {folder})"
        )


def ask(
    command: list[str], name: str, what: str, limit_s: float, environment
) -> tuple[dict | None, Finding | None]:
    """(the JSON that a process prints as its last line, or None; what is wrong with it)."""
    with tempfile.TemporaryFile("w+", errors="replace") as out:
        ended = run(command, limit_s, environment, out)
        out.seek(0)
        lines = [line for line in out.read().splitlines() if line.strip()] or [""]
    if ended == 0:
        with suppress(ValueError):
            return json.loads(lines[-1]), None
    why = (
        f"did not answer within {limit_s:g} s"
        if ended is None
        else f"ended with code {ended}: {lines[-1]}"
    )
    return None, Finding(
        name,
        False,
        f"{what} cannot be imported: its process {why}; try "
        f"{sys.executable} -c 'import "
        f"{what.lower()}'",
    )


def run(command: list[str], limit_s: float, environment, out) -> int | None:
    """The exit code of a command whose output goes into `out`; None when it had to be ended. With
    it end its children.
    """
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # also on ctrl-C
            # Ray ends its own processes on the first
            for sign, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience)


# ---- sources


def _requires() -> str | None:
    try:
        return importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hub(config: Config) -> list[Finding]:
    from huggingface_hub import constants

    models, data = checks.hub_names(config)
    return checks.hub(
        constants.ENDPOINT,
        constants.HF_HUB_CACHE,
        constants.is_offline_mode(),
        models,
        data,
        lambda name: checks.may_read(constants.ENDPOINT, name),
    )


def _last_line(path: Path) -> str:
    try:
        lines = [
            line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()
        ]
    except OSError as error:
        return str(error)
    return lines[-1] if lines else "it wrote nothing"
