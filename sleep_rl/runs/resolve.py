"""Resolve a path on the command line to a model: a run, one of its nights, or a full checkpoint.
Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.files import spelled
from sleep_rl.model.packaged_base import is_packaged
from sleep_rl.model.pointer import POINTER, has_dead_links
from sleep_rl.model.shape import HUB_NAME

NIGHT = re.compile(r"night-(\d+)")
WEIGHTS = "memory.safetensors"  # of a memory folder; model.memory_folder imports torch


@dataclass(frozen=True)
class ResolvedModel:
    """The model that a path resolves to.

    `path`: absolute path of a memory folder or a full checkpoint, or a hub name. `run`: folder of
    its run, if any. `night`: number of its last night, 0 before the first, None if unknown.
    """

    path: str
    run: Path | None = None
    night: int | None = None

    @property
    def name(self) -> str:
        """Short name: that of the run, else the last part of the path."""
        return (self.run or Path(self.path)).name


def resolve_model(path: str) -> ResolvedModel:
    """Return the model that `path` names; for a run that of its newest night.

    Raises InputError if it names no model, and for a run without a night.
    """
    folder = Path(spelled(path))
    if is_packaged(path):
        raise InputError(
            f"{path}: a model that has slept is needed here, got a plain base; sleep-rl run CONFIG "
            f"model.base={path} lives with it"
        )
    if not folder.is_dir():
        if folder.exists() or not HUB_NAME.fullmatch(path):
            got = "a file" if folder.exists() else "no such folder"
            raise InputError(
                f"{path}: expected a run, a memory folder, a full checkpoint or a hub name, "
                f"got {got}"
            )
        return ResolvedModel(path)
    folder = folder.absolute()
    if (folder / POINTER).is_file():
        return _memory_folder(folder)
    if (folder / "config.json").is_file():
        return _full_checkpoint(folder)
    if not is_run(folder):
        raise InputError(
            f"{path}: expected a run (metrics.jsonl), a memory folder ({POINTER}) or a full "
            "checkpoint (config.json), got a folder with none of them"
        )
    folders = nights(folder)
    if not folders:
        raise InputError(f"{path}: expected a run that has slept, got one without memory/night-<n>")
    last = max(folders)
    return ResolvedModel(str(folders[last]), folder, last)


def _memory_folder(folder: Path) -> ResolvedModel:
    run = folder.parent.parent
    if folder.parent.name != "memory" or not is_run(run):
        return ResolvedModel(str(folder))
    number = NIGHT.fullmatch(folder.name)
    return ResolvedModel(str(folder), run, int(number[1]) if number else None)


def _full_checkpoint(folder: Path) -> ResolvedModel:
    """Resolve a full checkpoint; `<run>/checkpoint` is from before the first night, `<run>/model`
    from after the last. Where the links of the latter are dead, since the base was moved, the
    memory of the last night is the same model.
    """
    run = folder.parent
    if folder.name not in ("model", "checkpoint") or not is_run(run):
        return ResolvedModel(str(folder))
    if folder.name == "checkpoint":
        return ResolvedModel(str(folder), run, 0)
    folders = nights(run)
    night = max(folders, default=None)
    if night is not None and has_dead_links(folder):
        folder = folders[night]
    return ResolvedModel(str(folder), run, night)


def is_run(folder: Path) -> bool:
    """Return whether `folder` is that of a run."""
    return (folder / "metrics.jsonl").is_file()


def nights(run: Path) -> dict[int, Path]:
    """Return number -> memory folder of every complete night, in order; without rejected ones."""
    numbered = {}
    for folder in (run / "memory").glob("night-*"):
        number = NIGHT.fullmatch(folder.name)
        if number and all((folder / file).is_file() for file in (POINTER, WEIGHTS)):
            numbered[int(number[1])] = folder
    return dict(sorted(numbered.items()))
