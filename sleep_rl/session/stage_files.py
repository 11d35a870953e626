"""Checkpoint files of a run, <run>/state.

<number of finished stages>/: a checkpoint after a stage, with the learner's memories, the driver's
results and rehearsal index, and, written last, a manifest with the digests of both. A folder
without a valid manifest is not a checkpoint. <number of finished stages>-<step>/: a partial
checkpoint inside the next stage, in the same form.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import RunError
from sleep_rl.files import JSON_BYTES, atomic_folder, parsed, regular
from sleep_rl.session.rehearsal_index import RehearsalIndex

LEARNER = "learner.safetensors"
DRIVER = "driver.json"
MANIFEST = "manifest.json"
CHECKPOINT_NAME = r"[0-9]{6,}"
PARTIAL_NAME = r"([0-9]{6,})-([0-9]{6,})"
KEPT = 2  # checkpoints: a spare one, in case the newest was not flushed to disk


@dataclass(frozen=True)
class Partial:
    """A partial checkpoint: the progress of an interrupted stage."""

    stage: str
    step: int
    learner: str  # absolute path of what Learner.save_progress wrote
    state: dict  # plain data of the stage


@dataclass(frozen=True)
class Checkpoint:
    """The state that a resumed run starts from. With `partial`, index, version and journal are
    those of the partial checkpoint.
    """

    folder: Path
    stage: str  # the newest finished one
    results: dict[str, Any]  # stage -> its result, in order of execution
    index: dict  # RehearsalIndex.state()
    version: int  # of the last push
    journal: int  # size in bytes
    partial: Partial | None = None

    @property
    def learner(self) -> str:
        """Absolute path of what Learner.save_checkpoint wrote."""
        return str((self.folder / LEARNER).absolute())

    @property
    def place(self) -> str:
        """Its position in the run, for console lines."""
        position = f"after stage {len(self.results)} ({self.stage})"
        if self.partial is None:
            return position
        step = self.partial.step
        inside = f"at step {step:,}" if step else "before the first step"
        return f"{position}, {inside} of the next ({self.partial.stage})"


class StageFiles:
    """Writes the checkpoints of one run."""

    def __init__(self, folder: str):
        self.folder = Path(folder) / "state"

    def write_checkpoint(self, run: Any, stage: str, results: dict[str, Any]) -> None:
        """Write a checkpoint after `stage`, the newest of `results`; remove older ones."""
        name = f"{len(results):06d}"
        driver = {"stage": stage, "results": results}
        self._write(run, name, run.crew.learn.save_checkpoint, driver)
        for old in _checkpoints(self.folder)[:-KEPT] + list(_partials(self.folder)):
            shutil.rmtree(old, ignore_errors=True)

    def write_partial(self, run: Any, stage: str, done: int, step: int, state: dict) -> None:
        """Write a partial checkpoint inside `stage`, after `done` finished stages."""
        driver = {"stage": stage, "state": state}
        self._write(run, f"{done:06d}-{step:06d}", run.crew.learn.save_progress, driver)
        for old in list(_partials(self.folder, done))[:-1]:
            shutil.rmtree(old, ignore_errors=True)

    def _write(self, run: Any, name: str, learner: Callable[[str], None], driver: dict) -> None:
        """Write all files atomically, the manifest last. `run`: a resumable.Resumable."""
        target = self.folder / name
        driver |= {
            "index": run.index.state(),
            "version": run.crew.version,
            "journal": run.journal.size(),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_folder(target) as aside:
                learner(str((aside / LEARNER).absolute()))
                (aside / DRIVER).write_text(json.dumps(driver))
                manifest = {file: _digest(aside / file) for file in (LEARNER, DRIVER)}
                (aside / MANIFEST).write_text(json.dumps(manifest))
        except OSError as error:
            raise RunError(
                f"checkpoint {target}: cannot be written ({error.strerror or error}); earlier "
                "checkpoints are intact"
            ) from error


def newest(folder: str | Path) -> Checkpoint | None:
    """Return the newest valid checkpoint of a run, with the newest partial one after it.

    Returns None if the run has no checkpoint. Raises RunError if none of its checkpoints is valid,
    since a restart would overwrite the run's results.
    """
    state = Path(folder) / "state"
    paths = _checkpoints(state)
    for path in reversed(paths):
        driver = _read(path, {"results": dict})
        if driver is not None:
            return _with_partial(Checkpoint(path, **driver))
    if paths:
        raise RunError(
            f"{folder}: expected a valid checkpoint in {state}, got {len(paths)} damaged ones (or "
            "ones of another version); remove them to restart the run, which overwrites its "
            "results"
        )
    return None


def _with_partial(checkpoint: Checkpoint) -> Checkpoint:
    done = int(checkpoint.folder.name)
    for path in reversed(list(_partials(checkpoint.folder.parent, done))):
        driver = _read(path, {"state": dict})
        if driver is None:
            continue
        step = int(path.name.split("-")[1])
        learner = str((path / LEARNER).absolute())
        partial = Partial(driver.pop("stage"), step, learner, driver.pop("state"))
        return replace(checkpoint, partial=partial, **driver)
    return checkpoint


def _read(path: Path, more: dict[str, type]) -> dict | None:
    """Return the driver's part of a checkpoint; None if it is incomplete or damaged.

    `more`: key -> type of the keys that only this form of checkpoint has.
    """
    kinds = {"stage": str, "index": dict, "version": int, "journal": int, **more}
    try:
        manifest = parsed(path / MANIFEST, JSON_BYTES)
        if any(_digest(path / file) != manifest[file] for file in (LEARNER, DRIVER)):
            return None
        driver = parsed(path / DRIVER)
        if set(driver) != set(kinds):
            return None
        if any(type(driver[key]) is not kind for key, kind in kinds.items()):
            return None
        RehearsalIndex().restore(driver["index"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return driver if driver["journal"] >= 0 and driver["version"] >= 0 else None


def _checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, oldest first; a temporary folder has another name."""
    return [path for path in _folders(folder) if re.fullmatch(CHECKPOINT_NAME, path.name)]


def _partials(folder: Path, done: int | None = None) -> Iterator[Path]:
    """Yield the complete partial checkpoints, oldest first; `done`: only those after so many
    stages.
    """
    for path in _folders(folder):
        match = re.fullmatch(PARTIAL_NAME, path.name)
        if match and done in (None, int(match[1])):
            yield path


def _folders(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):
        return []
    return sorted(path for path in folder.iterdir() if os.path.isdir(path))


def _digest(path: Path) -> str:
    with regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
