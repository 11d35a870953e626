"""Memory folders: `memory.safetensors` (megabytes), and `memory.json`, which points to the base
checkpoint of the memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.files import JSON_BYTES, atomic_folder, checked, parsed
from sleep_rl.model.memory_shape import check_levels
from sleep_rl.model.pointer import POINTER, base_of, pointer_to

MEMORY = "memory.safetensors"


def is_memory_folder(path: str | os.PathLike) -> bool:
    """Return whether `path` is a memory folder."""
    return os.path.isfile(Path(path) / POINTER)


def save_memory(model: PreTrainedModel, path: str, base: str) -> None:
    """Write the stored memory of `model` and a pointer to `base`, atomically.

    Raises RunError if it cannot be written.
    """
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if ".memory." in k}
    with atomic_checkpoint(path) as folder:
        save_file(tensors, folder / MEMORY)
        pointer = {
            **pointer_to(base, path),
            "vocab_size": model.config.vocab_size,
            "memory_levels": model.config.memory_levels,
        }
        (folder / POINTER).write_text(json.dumps(pointer, indent=2) + "\n")


def read_memory(
    folder: Path, levels: list[dict] | None = None
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return (pointer, tensors) of a memory folder.

    Raises InputError if it cannot be read, and if `levels` is given and the memory has others.
    """
    pointer = read_pointer(folder)
    try:
        tensors = load_file(checked(folder / MEMORY))
    except (OSError, SafetensorError) as error:
        raise InputError(f"memory {folder}: cannot be read ({one_line(error)})") from error
    stored = pointer["memory_levels"]
    if levels is not None and stored != levels:
        raise InputError(f"memory {folder}: its memory is {stored}, the config asks for {levels}")
    return pointer, tensors


def read_pointer(folder: Path) -> dict:
    """Return the pointer of a memory folder: base, vocab_size, memory_levels. Raises InputError."""
    try:
        pointer = parsed(folder / POINTER, JSON_BYTES)
        base = pointer["base"]
        levels = check_levels(pointer["memory_levels"], str(folder / POINTER))
        if not isinstance(base, str) or "\0" in base or not levels:
            raise ValueError(
                f"a base and its levels are needed, got {str(base)[:60]!r} and {levels}"
            )
        return {
            "base": base_of(folder, pointer),
            "vocab_size": pointer["vocab_size"],
            "memory_levels": list(levels),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"memory {folder}: cannot be read ({one_line(error)})") from error


def root(path: str) -> str:
    """Return the base checkpoint that a memory folder points to, directly or through other memory
    folders; of any other path the absolute path of a folder, or the hub name unchanged.
    """
    passed = [path]
    while is_memory_folder(path):
        path = read_pointer(Path(path))["base"]
        if path in passed:
            raise InputError(f"memory {path}: the pointers to its base form a cycle")
        passed.append(path)
    if len(passed) > 1 and os.path.isabs(path) and not os.path.isdir(path):
        raise InputError(
            f"memory {passed[-2]}: expected its base at {path} ({POINTER}), got no such folder"
        )
    return os.path.abspath(path) if os.path.isdir(path) else path


@contextmanager
def atomic_checkpoint(path: str, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `path` after the block: see `atomic_folder`.

    Raises RunError if it cannot be written, or if `path` exists and `replace` is False.
    """
    try:
        with atomic_folder(path, replace) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be written ({one_line(error)}); earlier files are intact"
        ) from error
