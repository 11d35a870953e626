"""A run's folder: its metadata (config, digest of the data, W&B id) and its lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sleep_rl.config.loader import dump, every_key, reload
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.contracts.roles import Task
from sleep_rl.files import JSON_BYTES, parsed, write_atomically
from sleep_rl.tasks.registry import make_task

FILE = "run.json"
LOCK = ".lock"
MOST_NUMBERED = 10_000  # folders of one name
GROWING = (
    "task.documents.path",
    "task.documents.questions",
)
"""Keys that may change with the next day of task documents, whose earlier days are in its
record.
"""
OUTPUTS = (
    "metrics.jsonl",
    "state",
    "memory",
    "dreams",
    "sequences",
    "logs",
    "wandb",
    "report.html",
    "documents.json",
    FILE,
)
"""Names that a run writes in its folder, besides the lock."""
MUTABLE = (
    "run.dir",
    "run.cache",
    "cluster.",
    "wandb.",
    "reward.timeout_s",
    "rollouts.workers",
    "rollouts.cpus",
    "learners.threads",
)
"""Keys that may change when a run is resumed, since results do not depend on them."""


def new_folder(config: Config, suffix: str = "") -> Path:
    """Make the folder <run.dir>/<run.name><suffix>, or, if it exists, <...>-2, <...>-3, ...

    Raises RunError if none can be made.
    """
    first = Path(config.run.dir) / f"{config.run.name}{suffix}"
    for folder in numbered(first):
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"run.dir: {folder} cannot be made: {error.strerror}") from error
    raise RunError(f"run.dir: {first} and its numbered names are all taken")


def numbered(first: Path) -> Iterator[Path]:
    """Yield `first`, then its name with -2, -3, ... appended."""
    yield first
    for number in range(2, MOST_NUMBERED):
        yield first.with_name(f"{first.name}-{number}")


def write(folder: Path, config: Config, task: Task, wandb: str = "") -> str:
    """Write a run's metadata; return its W&B id: `wandb`, or a new one if that is empty.

    Raises RunError if it cannot be written.
    """
    identity = {
        "config": dump(config),
        "data": data_digest(task),
        "days": len(task.days()),
        "wandb": wandb or secrets.token_hex(4),
    }
    try:
        write_atomically(folder / FILE, json.dumps(identity, indent=1).encode())
    except OSError as error:
        raise RunError(f"{folder / FILE}: cannot be written ({error.strerror or error})") from error
    return identity["wandb"]


def read(folder: Path, overrides: Sequence[str], accept: Sequence[str]) -> tuple[Config, Task, str]:
    """Return (config, task, W&B id) of a run to resume, with `overrides` applied.

    Raises InputError if there is no run, and if a key that results depend on, or the data, has
    changed and `accept` does not name it ("data" for the data).
    """
    tree, data, days, wandb = _stored(folder)
    before = reload(tree, str(folder / FILE))
    config = reload(tree, str(folder / FILE), overrides)
    if config.task.name == "documents":  # the days ingested so far
        task = make_task(config, str(folder), days)
    else:
        task = make_task(config)
    changed = [key for key in _changed_keys(before, config) if not key.startswith(MUTABLE)]
    if data_digest(task) != data:
        changed.append("data")
    refused = [key for key in changed if key not in accept]
    if refused:
        raise InputError(
            f"{folder}: {', '.join(refused)} changed since the run began; --accept "
            f"{','.join(refused)} resumes it anyway"
        )
    return config, task, wandb


def check_same(folder: Path, config: Config) -> str:
    """Check that `config` may continue the life in `folder` with its next day; return its W&B id.

    Raises InputError if a key has changed that the days so far depend on.
    """
    tree, _, _, wandb = _stored(folder)
    changed = _changed_keys(reload(tree, str(folder / FILE)), config)
    refused = sorted(key for key in changed if not key.startswith((*MUTABLE, *GROWING)))
    if refused:
        raise InputError(
            f"{folder}: the next day needs the config of the earlier ones, but "
            f"{', '.join(refused)} changed; choose another run.name for a new life"
        )
    return wandb


def _stored(folder: Path) -> tuple[dict, str, int, str]:
    """Return (config as a tree, digest of the data, days of the life so far, W&B id)."""
    try:
        identity = parsed(folder / FILE, JSON_BYTES)
        tree, data, days, wandb = (identity[key] for key in ("config", "data", "days", "wandb"))
        is_right = isinstance(tree, dict) and type(days) is int and days > 0
        if not is_right or not re.fullmatch(r"[0-9a-f]{8}", wandb):
            raise ValueError("invalid values")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or error
        raise InputError(
            f"{folder}: expected the folder of a run with {FILE}, got: {got}"
        ) from error
    except (KeyError, TypeError) as error:
        got = "a file that lacks some of config, data, days and wandb"
        raise InputError(
            f"{folder}: expected the folder of a run with {FILE}, got {got}"
        ) from error
    return tree, data, days, wandb


def check_inside(folder: Path) -> None:
    """Raise InputError if a name of OUTPUTS is a link, since the run would then write outside its
    folder. The folder itself may be a link.
    """
    real = os.path.realpath(folder)
    for name in OUTPUTS:
        target = os.path.realpath(folder / name)
        if target != os.path.join(real, name):
            raise InputError(
                f"{folder / name}: expected inside the run's folder, got a link to {target}"
            )


def data_digest(task: Task) -> str:
    """Return a digest of a task's days, known questions, opener and marker."""
    content = repr([task.days(), task.known(), task.opener, task.marker])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _changed_keys(before: Config, after: Config) -> Iterator[str]:
    """Yield the keys of which two configs have different values, those of unused tasks included."""
    yield from _changed(every_key(before), every_key(after))


def _changed(before: dict, after: dict, prefix: str = "") -> Iterator[str]:
    for key in before | after:
        old = before.get(key)
        new = after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def held(folder: Path) -> bool:
    """Return whether a process holds the lock of a run's folder."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder inside the block, or until the process ends.

    Raises InputError if another process holds it.
    """
    try:  # O_NOFOLLOW: the target of a link of this name must not be truncated
        lock = os.open(
            folder / LOCK,
            os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            0o644,
        )
    except OSError as error:
        raise InputError(
            f"{folder / LOCK}: expected a file to write into, got: {error.strerror}"
        ) from error
    with open(lock, "w") as file:
        for last in (False, False, True):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if last:
                    raise InputError(f"{folder}: another process works in this run") from error
                # `held`, which `sleep-rl watch` calls every few seconds, takes it for an instant
                time.sleep(0.05)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
