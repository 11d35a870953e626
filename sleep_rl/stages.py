"""What survives a kill: a life is a sequence of stages, each done once, with a checkpoint behind it.

A stage is a function decorated by `stage`: wake, one consolidation, one evaluation, one baseline's night. All randomness
inside one comes from the seed and the night's number, so a stage that was cut off is done again from its beginning with
the same result. A checkpoint is <run>/state/<number of stages done>: the learner's memories, the driver's results and
index, and, written last, a manifest with the digest of both; whatever has no sound manifest is no checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleep_rl.contracts import RunError
from sleep_rl.files import JSON_BYTES, parsed, regular
from sleep_rl.rehearsal import Index

if TYPE_CHECKING:
    from sleep_rl.life import Life

LEARNER, DRIVER, MANIFEST = "learner.safetensors", "driver.json", "manifest.json"
NAME = r"[0-9]{6,}"  # of a checkpoint's folder: how many stages were done
KEPT = 2  # checkpoints; the one before the newest stays for a disk that lies


def stage(body: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a step of the driver that is done once in a life; its result must be plain data. Inside another stage it is
    an ordinary call."""

    @functools.wraps(body)
    def once(life: Life, *args: Any, **kwargs: Any) -> Any:
        return life.progress.once(life, functools.partial(body, life, *args, **kwargs), body.__name__)

    return once


class Progress:
    """How far a life is. `results` of the stages done so far come from a checkpoint when a life is continued."""

    def __init__(self, folder: str | None = None, results: list[Any] | None = None):
        self.folder = Path(folder) / "state" if folder else None  # None: nothing is kept
        self.results = list(results or [])
        self._reached, self._inside = 0, False

    def once(self, life: Life, body: Callable[[], Any], name: str) -> Any:
        """The result of the next stage: remembered, or of doing it now and writing a checkpoint."""
        if self._inside:
            return body()
        self._reached += 1
        if self._reached <= len(self.results):
            return self.results[self._reached - 1]
        life.crew.forget()  # a stage begins with empty caches, also the first one of a continued life
        self._inside = True
        try:
            result = body()
        finally:
            self._inside = False
        self.results.append(result)
        if self.folder:
            self._write(life, name)
        return result

    def _write(self, life: Life, name: str) -> None:
        target = self.folder / f"{len(self.results):06d}"
        aside = target.with_suffix(".partial")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            life.crew.learn.snapshot(str((aside / LEARNER).absolute()))
            driver = {"stage": name, "results": self.results, "index": life.index.state(), "version": life.crew.version,
                      "journal": life.journal.size()}
            _write(aside / DRIVER, json.dumps(driver).encode())
            manifest = {file: _digest(aside / file) for file in (LEARNER, DRIVER)}
            _write(aside / MANIFEST, json.dumps(manifest).encode())
            shutil.rmtree(target, ignore_errors=True)
            os.rename(aside, target)
            _sync(self.folder)
            for old in _complete(self.folder)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise RunError(f"checkpoint {target}: cannot be written ({error.strerror or error}); earlier ones are "
                           "intact") from error


def newest(folder: str) -> tuple[Path, dict] | None:
    """(checkpoint, its driver state) of the newest complete checkpoint of a run; None for a run that has none yet. Raises
    RunError where there are some and none is sound: to begin anew would write over what that life has saved."""
    found = _complete(Path(folder) / "state")
    for path in reversed(found):
        try:
            manifest = parsed(path / MANIFEST, JSON_BYTES)
            if all(_digest(path / file) == manifest[file] for file in (LEARNER, DRIVER)):
                return path, _driver(parsed(path / DRIVER))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut off or damaged: the one before it counts
    if found:
        raise RunError(f"{folder}: expected a sound checkpoint in {Path(folder) / 'state'}, got {len(found)} damaged ones; "
                       "remove them to begin the life anew, which writes over its record")
    return None


def _driver(state: Any) -> dict:
    """The driver's state as `Progress` wrote it. Raises ValueError for anything else."""
    kinds = {"stage": str, "results": list, "index": dict, "version": int, "journal": int}
    if not isinstance(state, dict) or any(type(state.get(name)) is not kind for name, kind in kinds.items()):
        raise ValueError("not a driver's state")
    if state["journal"] < 0 or state["version"] < 0:
        raise ValueError("a negative number")
    Index().restore(state["index"])
    return state


def _complete(folder: Path) -> list[Path]:
    """Folders that were renamed into place, oldest first."""
    if not os.path.isdir(folder):
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(NAME, path.name) and os.path.isdir(path))


def _digest(path: Path) -> str:
    with regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename lasts only when its folder is synced, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
