"""`sleep-rl submit`: a run as a job of a Ray cluster. The job belongs to the cluster: who follows
it may come and go.

What is sent is the repository around this package (or nothing of it, where the cluster's nodes have
it installed) and the config with its includes. A job has its own copy of both, which goes with it:
the run's folder and the cache lie at absolute paths, in a folder that every node sees.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from cluster.jobs.client import MOST_BYTES, JobServer, Trouble, Unreachable
from sleep_rl.config.loader import dump, load
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.text import clock
from sleep_rl.plan.plan import plan
from sleep_rl.runs.git import VARIABLE, commit

ROOT = Path(__file__).parents[2]
# and whatever is hidden: .git, .venv, .env
LEFT_HERE = {"cache", "runs", "wandb", "build", "__pycache__"}
PATHS = (
    "path",
    "base",
    "base_text",
    "teachers",
    "model",
    "challenges",
    "solutions",
    "questions",
    "known",
    "target",
)  # last parts of keys that name files
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STAMP = re.compile(r"-\d{4}-\d{6}$")
# seconds that a stopped run has for its last record and report; Ray's own 3 would cut it off
STOP_S = 90
PATIENCE_S = 300.0  # how long a job server may be away while a job is followed
POLL_S, LONGEST_POLL_S = 1.0, 15.0
# the exit code of a run whose input cannot work: going on with it would end the same way
BAD_INPUT = 2


def submit(
    path: str, overrides: Sequence[str], address: str | None, installed: bool = False
) -> int:
    """Submits `sleep-rl run` and follows it. Returns the run's exit code. Raises InputError before
    anything is sent when the config cannot work, and for an address or token that does not.
    """
    config = load(path, overrides)
    plan(config)
    server, job = JobServer(address), new_id(config.run.name)
    where = f"submitted/{Path(path).stem}.yaml"
    # documents: today is the next day of the same life
    name = config.run.name if config.task.name == "documents" else job
    fixed = [*_absolute(config), f"run.name={name}", "cluster.backend=ray", "cluster.address=auto"]
    keys = {text.partition("=")[0] for text in fixed}
    mine = [text for text in overrides if text.partition("=")[0].strip() not in keys]
    command = ["python", "-m", "sleep_rl", "run", where, *mine, *fixed]
    files = {where: yaml.safe_dump(dump(config), sort_keys=False)}
    run = os.path.join(os.path.abspath(config.run.dir), name)
    return _start(
        server,
        job,
        command,
        package(None if installed else ROOT, files),
        {"config": path, "run": run},
    )


def resume(
    run: str, overrides: Sequence[str], accept: str, address: str | None, installed: bool = False
) -> int:
    """Submits `sleep-rl resume` for a run's folder on the cluster, and follows it. Returns the
    run's exit code.
    """
    server, run = JobServer(address), os.path.abspath(run)
    command = ["python", "-m", "sleep_rl", "resume", run, *overrides, "cluster.address=auto"]
    command += ["--accept", accept] if accept else []
    code = b"" if installed else package(ROOT, {})
    return _start(
        server,
        new_id(STAMP.sub("", Path(run).name)),
        command,
        code,
        {"config": "resume", "run": run},
    )


def follow(job: str, address: str | None) -> int:
    """Prints the log of a job from its beginning to its end. Returns the run's exit code. Raises
    RunError for a job that was stopped, or whose server stays away.
    """
    return _follow(JobServer(address), job)


def stop(job: str, address: str | None) -> int:
    """Stops a job and waits until its run has ended in good order. Raises RunError when it does not
    in time.
    """
    server = JobServer(address)
    info = server.info(job)
    if info["status"] in ENDED:
        print(f"{job}: has ended already ({info['status']})", flush=True)
        return 0
    server.stop(job)
    deadline = time.monotonic() + STOP_S + 60
    while (info := server.info(job))["status"] not in ENDED:
        if time.monotonic() > deadline:
            raise RunError(
                f"{job}: was told to stop, and is still {info['status']} after {clock(STOP_S + 60)}"
            )
        time.sleep(POLL_S)
    print(f"{job}: {info['status'].lower()}; {_again(info, server)}", flush=True)
    return 0


def new_id(name: str) -> str:
    """An id that can be typed, and the name of the run's folder: <run.name>-<month and day>-<time
    of day>.
    """
    return f"{name[:80]}-{time.strftime('%m%d-%H%M%S')}"


def package(root: Path | None, files: dict[str, str]) -> bytes:
    """A job's working directory as a zip file, the same bytes for the same content: what lies in
    the repository at `root`, without what is hidden, run folders and caches; and `files` (name ->
    text). Raises InputError when it is too large.
    """
    content = {name: text.encode() for name, text in files.items()}
    if root is not None:
        if not (root / "pyproject.toml").is_file():
            raise InputError(
                f"submit: no repository around sleep_rl at {root}; --installed runs "
                "what the cluster's nodes have"
            )
        content |= _sources(root)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content[name])
    return buffer.getvalue()


def _sources(root: Path) -> dict[str, bytes]:
    found, sizes = [], {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_HERE and name[0] != "."]
        for file in (
            Path(folder, name) for name in names if name not in LEFT_HERE and name[0] != "."
        ):
            if file.is_file():
                found.append(file)
                top = file.relative_to(root).parts[0]
                sizes[top] = sizes.get(top, 0) + file.stat().st_size
    # compressed it may still be too much: see JobServer.upload
    if sum(sizes.values()) > 4 * MOST_BYTES:
        top = max(sizes, key=sizes.get)
        raise InputError(
            f"submit: {root} holds {sum(sizes.values()) >> 20} MiB beside "
            f"{', '.join(sorted(LEFT_HERE))}, most of "
            f"it in {top} ({sizes[top] >> 20} MiB), too much to send; data belongs "
            "where every node sees it"
        )
    return {str(file.relative_to(root)): file.read_bytes() for file in found}


def _absolute(config: Config) -> list[str]:
    """Overrides that give every relative path of a config its meaning here: a job's own folder is
    another one.
    """
    out = [
        f"run.{key}={_text(os.path.abspath(getattr(config.run, key)))}" for key in ("dir", "cache")
    ]

    def visit(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                visit(value, f"{prefix}{key}.")
            elif key in PATHS and (there := _here(value)) != value:
                out.append(f"{prefix}{key}={_text(there)}")

    visit({name: section for name, section in dump(config).items() if name != "run"}, "")
    return out


def _here(value: Any) -> Any:
    if isinstance(value, list):
        return [_here(each) for each in value]
    # own code: path/to/file.py:Class
    if isinstance(value, str) and (parts := value.rpartition(":"))[0].endswith(".py"):
        return f"{_here(parts[0])}:{parts[2]}"
    return os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value


def _text(value: Any) -> str:
    """A value as an override writes it."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6)
        .strip()
        .removesuffix("\n...")
        .strip()
    )


def _start(
    server: JobServer, job: str, command: list[str], code: bytes, metadata: dict[str, str]
) -> int:
    known = commit()
    environment: dict[str, Any] = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | ({VARIABLE: known} if known else {})
    }
    if code:
        environment["working_dir"] = server.upload(code)
    try:
        server.submit(
            job,
            f"exec {shlex.join(command)}",
            environment,
            metadata | {"commit": known or "unknown"},
        )
    except (KeyboardInterrupt, Unreachable) as error:
        raise RunError(
            f"{job}: {error or 'interrupted'}; it may have been submitted all the "
            f"same: {_hints(server, job)}"
        ) from error
    return _follow(
        server,
        job,
        f"{job}: submitted to {server.address}; its run folder, which "
        "every node must see: "
        f"{metadata['run']}\n{job}: {_hints(server, job)}\n",
    )


def _follow(server: JobServer, job: str, greeting: str = "") -> int:
    if hasattr(sys.stdout, "reconfigure"):
        # a run's tables have lines that LANG=C cannot print
        sys.stdout.reconfigure(errors="replace")
    try:
        with _hangup_interrupts():
            print(greeting, end="", flush=True)
            info = _tail(server, job)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError):
            # or Python would flush into it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(OSError):  # the terminal may be gone
            print(
                f"\n{job}: goes on without you; {_hints(server, job)}", file=sys.stderr, flush=True
            )
        return 130
    if info["status"] == "SUCCEEDED":
        return 0
    if info["status"] == "STOPPED":
        raise RunError(f"{job}: was stopped; {_again(info, server)}")
    if not (code := info.get("driver_exit_code")):
        raise RunError(
            f"{job}: failed: "
            f"{(str(info.get('message')).strip().splitlines() or ['no reason given'])[-1]}"
        )
    more = f"; {_again(info, server)}" if code != BAD_INPUT else ""
    print(
        f"sleep-rl: {job}: failed with exit code {code}; what it printed last says why{more}",
        file=sys.stderr,
        flush=True,
    )
    return code if 0 < code < 256 else 1


def _tail(server: JobServer, job: str) -> dict[str, Any]:
    """Prints the log until the job has ended; returns what is known about it then."""
    printed, away, told = 0, 0.0, ""
    info = server.info(job)
    while True:
        began = time.monotonic()
        try:
            info = server.info(job)  # before the log: a log read after the end is whole
            log = server.log(job)
            away = 0.0
        except (Unreachable, Trouble) as error:
            log, away = None, away or began
            if began - away > PATIENCE_S and info["status"] in ENDED:
                return info
            if began - away > PATIENCE_S:
                raise RunError(
                    f"{job}: {error}, since {clock(PATIENCE_S)}; {_hints(server, job)}"
                ) from error
            if away == began:
                print(
                    f"{job}: {error}; trying again for {clock(PATIENCE_S)}",
                    file=sys.stderr,
                    flush=True,
                )
        if log is not None:
            print(log[printed:], end="", flush=True)
            printed = len(log)
            if info["status"] in ENDED:
                return info
            if info["status"] == "PENDING" and info.get("message") not in (None, told):
                told = info["message"]
                print(f"{job}: {' '.join(told.split())}", file=sys.stderr, flush=True)
        # A long log costs the server little of its time; a busy one is not asked again and again.
        time.sleep(min(max(POLL_S, 10 * (time.monotonic() - began)), LONGEST_POLL_S))


@contextmanager
def _hangup_interrupts() -> Iterator[None]:
    """A lost terminal ends the following like Ctrl-C; under `nohup` it goes on."""

    def hang_up(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _hints(server: JobServer, job: str) -> str:
    return (
        f"sleep-rl submit --follow {job} --address {server.address} shows its log, "
        f"sleep-rl submit --stop {job} --address {server.address} stops it"
    )


def _again(info: dict[str, Any], server: JobServer) -> str:
    run = (info.get("metadata") or {}).get("run")
    return (
        f"sleep-rl submit --resume {shlex.quote(run)} --address {server.address} goes on "
        "with its run"
        if run
        else "it was not submitted by sleep-rl submit"
    )
