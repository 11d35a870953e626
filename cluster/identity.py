"""What a run's folder says of the run: its config, its data, its W&B id; and that only one process lives in it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sleep_rl.config import Config
from sleep_rl.contracts import InputError, RunError, Task
from sleep_rl.loading import dump, reload
from sleep_rl.tasks.make import make_task

FILE, LOCK = "run.json", ".lock"
GROWING = ("task.documents.days", "task.documents.path", "task.documents.questions", "task.documents.record", "run.dir")
"""Keys that the next day of a life on documents may bring: what was taken in before stands in the record."""
FREE = ("cluster.", "wandb.", "reward.timeout_s", "rollouts.workers", "rollouts.cpus", "learners.threads")
"""Keys that may change when a run goes on: where and how fast it runs, not what it computes."""


def write(folder: Path, config: Config, task: Task, wandb: str = "") -> str:
    """Writes a run's identity; returns its W&B id, a new one unless `wandb` is it. Raises RunError when the disk refuses."""
    identity = {"config": dump(config), "data": data_digest(task), "wandb": wandb or secrets.token_hex(4)}
    try:
        (folder / f"{FILE}.partial").write_text(json.dumps(identity, indent=1))
        os.replace(folder / f"{FILE}.partial", folder / FILE)
    except OSError as error:
        raise RunError(f"{folder / FILE}: cannot be written ({error.strerror or error})") from error
    return identity["wandb"]


def read(folder: Path, overrides: Sequence[str], accept: Sequence[str]) -> tuple[Config, Task, str]:
    """(config, task, W&B id) of a run that is to go on. Raises InputError when there is none, and when anything that the
    results depend on is not what it was, unless `accept` names it: a key that an override changes, or `data`."""
    tree, data, wandb = _stored(folder)
    before, config = reload(tree, str(folder / FILE)), reload(tree, str(folder / FILE), overrides)
    if config.task.documents.record:  # the folder may have been moved
        config = with_documents(config, record=str(folder))
    task = make_task(config)
    changed = [key for key in _changed(dump(before), dump(config)) if not key.startswith(FREE)]
    if data_digest(task) != data:
        changed.append("data")
    refused = [key for key in changed if key not in accept]
    if refused:
        raise InputError(f"{folder}: {', '.join(refused)} changed since the run began; --accept {','.join(refused)} goes "
                         "on all the same")
    return config, task, wandb


def check_same(folder: Path, config: Config) -> str:
    """The W&B id of the life in `folder`, which is to live its next day with `config`. Raises InputError where that differs in
    a key that its days so far depended on."""
    tree, _, wandb = _stored(folder)
    changed = _changed(dump(reload(tree, str(folder / FILE))), dump(config))
    refused = sorted(key for key in changed if not key.startswith((*FREE, *GROWING)))
    if refused:
        raise InputError(f"{folder}: a life goes on as it began, but {', '.join(refused)} changed; choose another run.name for "
                         "another life")
    return wandb


def with_documents(config: Config, **keys: object) -> Config:
    """The config with keys of task.documents changed."""
    return replace(config, task=replace(config.task, documents=replace(config.task.documents, **keys)))


def _stored(folder: Path) -> tuple[dict, str, str]:
    """(config as a tree, digest of the data, W&B id)."""
    try:
        identity = json.loads((folder / FILE).read_text())
        tree, data, wandb = (identity[key] for key in ("config", "data", "wandb"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: expected the folder of a run with {FILE}, got {type(error).__name__}") from error
    return tree, data, wandb


def data_digest(task: Task) -> str:
    """Digest of everything that a task's days and questions say."""
    content = repr([task.days(), task.known(), task.opener, task.marker])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _changed(before: dict, after: dict, prefix: str = "") -> Iterator[str]:
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def held(folder: Path) -> bool:
    """Whether a process lives in a run's folder."""
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
    """Holds a run's folder; the lock goes with the process, however it ends. Raises InputError when it is held."""
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder}: another process lives in this run") from error
        file.write(str(os.getpid()))
        file.flush()
        yield
