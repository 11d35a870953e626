"""What people name when they mean a model: a run, one of its nights, or a full checkpoint. Imports
no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sleep_rl.contracts.errors import InputError
from sleep_rl.model.shape import HUB_NAME, POINTER

NIGHT = re.compile(r"night-(\d+)")
WEIGHTS = "memory.safetensors"  # of a memory folder (sleep_rl.model.checkpoints, which imports torch)


@dataclass(frozen=True)
class Found:
    """`path`: of a memory folder or a full checkpoint, absolute, or a hub name. `run`: the run that
    it is of, None outside one. `night`: how many nights of that run it holds, None where nobody
    says.
    """

    path: str
    run: Path | None = None
    night: int | None = None

    @property
    def name(self) -> str:
        """A short name for people: the run's, else the folder's, else the hub's."""
        return (self.run or Path(self.path)).name


def find(path: str) -> Found:
    """What `path` holds; of a run the newest night. Raises InputError for anything else, and for a
    run without a night.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or not HUB_NAME.fullmatch(path):
            raise InputError(
                f"{path}: expected a run, a memory folder, a full checkpoint or a "
                "hub name, got "
                f"{'a file' if folder.exists() else 'no such folder'}"
            )
        return Found(path)
    folder = folder.absolute()
    if (folder / POINTER).is_file():
        run = (
            folder.parent.parent
            if folder.parent.name == "memory" and is_run(folder.parent.parent)
            else None
        )
        number = NIGHT.fullmatch(folder.name)
        return Found(str(folder), run, int(number[1]) if run and number else None)
    if (folder / "config.json").is_file():
        run = (
            folder.parent
            if folder.name in ("model", "checkpoint") and is_run(folder.parent)
            else None
        )
        last = max(nights(run), default=None) if run and folder.name == "model" else 0
        return Found(str(folder), run, last if run else None)
    if not is_run(folder):
        raise InputError(
            f"{path}: expected a run (metrics.jsonl), a memory folder ({POINTER}) "
            "or a full checkpoint "
            "(config.json), got a folder with none of them"
        )
    found = nights(folder)
    if not found:
        raise InputError(f"{path}: expected a run that has slept, got one without memory/night-<n>")
    last = max(found)
    return Found(str(found[last]), folder, last)


def is_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file()


def nights(run: Path) -> dict[int, Path]:
    """Number -> memory folder of every complete night, in order. A rejected night is none: the run
    goes on without it.
    """
    numbered = {
        int(m[1]): folder
        for folder in (run / "memory").glob("night-*")
        if (m := NIGHT.fullmatch(folder.name))
    }
    return {
        n: numbered[n]
        for n in sorted(numbered)
        if all((numbered[n] / f).is_file() for f in (POINTER, WEIGHTS))
    }
