"""`sleep-rl submit`: a run as a job of a Ray cluster.

The job's working directory contains the repository (unless the cluster's nodes have the package
installed) and the config with its includes. Ray deletes it after the job, so the run's folder and
the cache are at absolute paths, on a file system that all nodes share.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.jobs.client import JobServer, MaybeSubmitted
from cluster.jobs.follow import follow_job, hints, resume_hint
from cluster.jobs.package import Package, package
from sleep_rl.config.loader import dump, load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import RunError
from sleep_rl.journal.text import clock
from sleep_rl.plan.plan import plan
from sleep_rl.runs.git import VARIABLE, commit

ROOT = Path(__file__).parents[2]
PATHS = (
    "path",
    "base",
    "base_text",
    "teachers",
    "model",
    "questions",
    "known",
    "target",
)  # last parts of keys that name files
STAMP = re.compile(r"-\d{4}-\d{6}$")
# seconds between SIGTERM and SIGKILL: a run writes its last record and report; Ray's default is 3
STOP_S = 90
STOP_MARGIN_S = 60  # added to STOP_S, until the server reports the end
POLL_S = 1.0
MAX_NAMED = 12  # files and folders that are not sent


def submit(
    path: str, overrides: Sequence[str], address: str | None, installed: bool = False
) -> int:
    """Submit `sleep-rl run` and follow it; return the run's exit code.

    `installed`: the nodes have this package installed, so no code is sent. Raises InputError for an
    invalid config, before anything is sent, and for a wrong address or token.
    """
    config = load(path, overrides)
    plan(config)
    server = JobServer(address)
    job = new_id(config.run.name)
    sent_as = f"submitted/{Path(path).stem}.yaml"
    # task documents: each job adds a day to the same life
    name = config.run.name if config.task.name == "documents" else job
    fixed = [*_absolute(config), f"run.name={name}", "cluster.backend=ray", "cluster.address=auto"]
    fixed_keys = {text.partition("=")[0] for text in fixed}
    kept = [text for text in overrides if text.partition("=")[0].strip() not in fixed_keys]
    command = ["python", "-m", "sleep_rl", "run", sent_as, *kept, *fixed]
    files = {sent_as: yaml.safe_dump(dump(config), sort_keys=False)}
    run = os.path.join(os.path.abspath(config.run.dir), name)
    code = package(None if installed else ROOT, files)
    return _start(server, job, command, code, {"config": path, "run": run})


def resume(
    run: str, overrides: Sequence[str], accept: str, address: str | None, installed: bool = False
) -> int:
    """Submit `sleep-rl resume` for a run's folder on the cluster, and follow it; return the run's
    exit code. `accept`: value of --accept; `installed`: see submit.
    """
    server = JobServer(address)
    run = os.path.abspath(run)
    job = new_id(STAMP.sub("", Path(run).name))
    command = ["python", "-m", "sleep_rl", "resume", run, *overrides, "cluster.address=auto"]
    command += ["--accept", accept] if accept else []
    code = Package() if installed else package(ROOT, {})
    return _start(server, job, command, code, {"config": "resume", "run": run})


def follow(job: str, address: str | None) -> int:
    """Print the log of a job from its start to its end; see follow_job."""
    return follow_job(JobServer(address), job)


def stop(job: str, address: str | None) -> int:
    """Stop a job and wait until its run has written its record and ended; return 0. Raises RunError
    when that takes longer than STOP_S + STOP_MARGIN_S.
    """
    server = JobServer(address)
    info = server.info(job)
    if info.status.is_terminal():
        print(f"{job}: has ended already ({info.status})", flush=True)
        return 0
    server.stop(job)
    limit_s = STOP_S + STOP_MARGIN_S
    deadline = time.monotonic() + limit_s
    while not (info := server.info(job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise RunError(
                f"{job}: was asked to stop, but is still {info.status} after {clock(limit_s)}"
            )
        time.sleep(POLL_S)
    print(f"{job}: {info.status.lower()}; {resume_hint(info, server)}", flush=True)
    return 0


def new_id(name: str) -> str:
    """Return the id of a new job, also the name of its run's folder: <name>-<MMDD>-<HHMMSS>."""
    return f"{name[:80]}-{time.strftime('%m%d-%H%M%S')}"


def _start(
    server: JobServer, job: str, command: list[str], code: Package, metadata: dict[str, str]
) -> int:
    """Submit a command and follow the job; `code`: its working directory."""
    revision = commit()
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
    if revision:
        variables[VARIABLE] = revision
    try:
        server.submit(
            job,
            f"exec {shlex.join(command)}",
            {"env_vars": variables},
            metadata | {"commit": revision or "unknown"},
            code.content,
        )
    except MaybeSubmitted as error:
        raise RunError(
            f"{job}: {error}; it may have been submitted nevertheless: {hints(server, job)}"
        ) from error
    greeting = (
        f"{job}: submitted to {server.address}; its run folder, which all nodes must share: "
        f"{metadata['run']}\n{job}: {hints(server, job)}\n"
    )
    return follow_job(server, job, _sent_without(job, code) + greeting)


def _sent_without(job: str, code: Package) -> str:
    """Return a line with the files of the repository that the job does not have; empty if none."""
    if not code.left_out:
        return ""
    named = ", ".join(code.left_out[:MAX_NAMED])
    more = len(code.left_out) - MAX_NAMED
    return f"{job}: the code is sent without {named}{f' and {more} more' if more > 0 else ''}\n"


def _absolute(config: Config) -> list[str]:
    """Return overrides that make the relative paths of a config absolute: a job runs in another
    folder.
    """
    out = [
        f"run.{key}={_yaml(os.path.abspath(getattr(config.run, key)))}" for key in ("dir", "cache")
    ]

    def visit(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{key}.")
            elif key in PATHS:
                absolute = _absolute_value(value)
                if absolute != value:
                    out.append(f"{prefix}{key}={_yaml(absolute)}")

    sections = {name: section for name, section in dump(config).items() if name != "run"}
    visit(sections, "")
    return out


def _absolute_value(value: Any) -> Any:
    """Return a path (each of a list, or the file of "path/to/file.py:Class") as an absolute path if
    it exists; any other value unchanged.
    """
    if isinstance(value, list):
        return [_absolute_value(item) for item in value]
    if not isinstance(value, str):
        return value
    file, _, name = value.rpartition(":")
    if file.endswith(".py"):
        return f"{_absolute_value(file)}:{name}"
    return os.path.abspath(value) if os.path.exists(value) else value


def _yaml(value: Any) -> str:
    """Return a value in the YAML syntax of an override."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.strip().removesuffix("\n...").strip()
