"""The path of the base in memory.json, which stays valid after memory and base are moved together.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POINTER = "memory.json"  # file of a memory folder that points to the base of the memory


def pointer_to(base: str, folder: str | os.PathLike) -> dict[str, str]:
    """Return the entries of memory.json in `folder` that name its base.

    A local base has two entries: its absolute path, for a moved run, and its path relative to
    `folder`, if both are moved.
    """
    if not os.path.isdir(base):  # a hub name
        return {"base": base}
    return {
        "base": os.path.abspath(base),
        "base_from_here": os.path.relpath(os.path.abspath(base), os.path.abspath(folder)),
    }


def base_of(folder: str | os.PathLike, pointer: Mapping[str, Any]) -> str:
    """Return the base that `pointer`, read in `folder`, names: the existing one of both paths, the
    absolute one first, or else `base` unchanged.
    """
    from_here = pointer.get("base_from_here")
    if os.path.isdir(pointer["base"]) or not isinstance(from_here, str):
        return pointer["base"]
    # lexically, as it was written: `..` after a link would lead elsewhere
    moved = os.path.normpath(os.path.join(os.path.abspath(folder), from_here))
    return moved if os.path.isdir(moved) else pointer["base"]


def has_dead_links(folder: Path) -> bool:
    """Return whether a checkpoint has dangling links, since its base was moved."""
    return any(file.is_symlink() and not file.exists() for file in folder.iterdir())
