"""A job's working directory as a zip file: the repository around this package, and the config."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

from sleep_rl.contracts.errors import InputError

# besides hidden files such as .git, .venv, .env
EXCLUDED = {"cache", "runs", "wandb", "build", "__pycache__"}
# before compression: text shrinks to about a quarter, and may still fit into client.MAX_BYTES
MAX_BYTES = 400 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every file, so that equal contents give equal bytes


def package(root: Path | None, files: dict[str, str]) -> bytes:
    """Return a zip file; equal contents give equal bytes.

    `root`: the repository to pack, without hidden files, run folders and caches; None: no code.
    `files`: name -> text of further files. Raises InputError when the repository is too large or
    has no pyproject.toml.
    """
    content = {name: text.encode() for name, text in files.items()}
    if root is not None:
        if not (root / "pyproject.toml").is_file():
            raise InputError(
                f"submit: {root} has no pyproject.toml, so it is not the repository; --installed "
                "runs the code that the cluster's nodes have"
            )
        content |= _sources(root)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[name])
    return buffer.getvalue()


def _sources(root: Path) -> dict[str, bytes]:
    """Return name -> content of the files below `root` that a job needs."""
    found: list[Path] = []
    sizes: dict[str, int] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if _is_source(name)]
        for file in [Path(folder, name) for name in names if _is_source(name)]:
            if file.is_file():
                found.append(file)
                top = file.relative_to(root).parts[0]
                sizes[top] = sizes.get(top, 0) + file.stat().st_size
    total = sum(sizes.values())
    if total > MAX_BYTES:
        top = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"submit: {root} holds {total >> 20} MiB beside {', '.join(sorted(EXCLUDED))}, most of "
            f"it in {top} ({sizes[top] >> 20} MiB), too much to send; put data on a file system "
            "that all nodes share"
        )
    return {str(file.relative_to(root)): file.read_bytes() for file in found}


def _is_source(name: str) -> bool:
    return name not in EXCLUDED and not name.startswith(".")
