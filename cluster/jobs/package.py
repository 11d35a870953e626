"""A job's working directory as a zip file: the repository around this package, and the config."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sleep_rl.contracts.errors import InputError

# Output folders of runs and builds in the repository's root; deeper folders of these names, such as
# sleep_rl/runs, are code.
DATA_FOLDERS = {"cache", "runs", "wandb", "build"}
COMPILED = "__pycache__"
# before compression: text shrinks to about a quarter, and may still fit into client.MAX_BYTES
MAX_BYTES = 400 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every file, so that equal contents give equal bytes


@dataclass(frozen=True)
class Package:
    """A working directory as a zip file. `left_out`: names in the repository that it does not
    contain, each with the reason unless the name shows it; without compiled files.
    """

    content: bytes = b""
    left_out: tuple[str, ...] = ()


def package(root: Path | None, files: dict[str, str]) -> Package:
    """Pack a working directory; equal contents give equal bytes.

    `root`: the repository to pack, without hidden files, run folders and caches; None: no code.
    `files`: name -> text of further files. Raises InputError when the repository is too large,
    cannot be read or has no pyproject.toml.
    """
    content = {name: text.encode() for name, text in files.items()}
    left_out: list[str] = []
    if root is not None:
        if not (root / "pyproject.toml").is_file():
            raise InputError(
                f"submit: {root} has no pyproject.toml, so it is not the repository; --installed "
                "runs the code that the cluster's nodes have"
            )
        found, left_out = _sources(root)
        content |= found
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[name])
    return Package(buffer.getvalue(), tuple(left_out))


def _sources(root: Path) -> tuple[dict[str, bytes], list[str]]:
    """Return (name -> content of the files below `root` that a job needs, names left out)."""
    names, left_out = _listed(root)
    sizes: dict[str, int] = {}
    try:
        for name in names:
            top = name.partition("/")[0]
            sizes[top] = sizes.get(top, 0) + (root / name).stat().st_size
        total = sum(sizes.values())
        if total > MAX_BYTES:
            top = max(sizes, key=sizes.__getitem__)
            raise InputError(
                f"submit: {root} holds {total >> 20} MiB beside {', '.join(sorted(DATA_FOLDERS))}, "
                f"most of it in {top} ({sizes[top] >> 20} MiB), too much to send; put data on a "
                "file system that all nodes share"
            )
        return {name: (root / name).read_bytes() for name in names}, left_out
    except OSError as error:
        raise InputError(f"submit: cannot read {error.filename}: {error.strerror}") from error


def _listed(root: Path) -> tuple[list[str], list[str]]:
    """Return (names of the files that a job needs, names left out) below `root`, sorted."""
    names = []
    left_out = []
    for parent, folders, files in os.walk(root):
        here = Path(parent).relative_to(root)
        for name in sorted([*folders, *files]):
            path = (here / name).as_posix()
            reason = _reason_to_leave_out(root, here / name)
            if reason is not None:
                left_out += [path + reason] * (name != COMPILED)
            elif name in files:
                names.append(path)
        folders[:] = [f for f in folders if _reason_to_leave_out(root, here / f) is None]
    return sorted(names), sorted(left_out)


def _reason_to_leave_out(root: Path, path: Path) -> str | None:
    """Return why a file or folder is left out, "" if its name shows it; None if it is packed."""
    full = root / path
    is_data = str(path) in DATA_FOLDERS and full.is_dir() and not any(full.glob("*.py"))
    if path.name.startswith(".") or path.name == COMPILED or is_data:
        return ""
    if full.is_dir():
        return " (a link to a folder)" if full.is_symlink() else None
    return None if full.is_file() else " (not a regular file)"
