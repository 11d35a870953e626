"""A learner's checkpoint as one safetensors file, which unlike a pickle cannot execute code.

Tensors: `generator`, and per saved state `<number>/memory/<key>` and `<number>/chunks/<key>`. The
header maps tags to numbers and has the order of the experts of each state.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sleep_rl.contracts.errors import RunError, one_line
from sleep_rl.files import checked

HEADER = "learner"  # key of the safetensors metadata
GENERATOR = "generator"


class MemoryState(NamedTuple):
    """A saved state of the memory, between nights."""

    memory: dict[str, Tensor]  # by checkpoint key
    chunks: dict[str, Tensor]  # the open chunks, see wake.Chunks.state
    slots: dict[int, list[int]]  # level -> slots in use, oldest first


def write(path: str, states: dict[str, MemoryState], generator: torch.Generator) -> None:
    """Write `states` (by tag) and the generator, and sync the file. A state under two tags is
    written once. Raises RunError.
    """
    numbers: dict[int, int] = {}  # identity of a state -> its number in the file
    tensors = {GENERATOR: generator.get_state()}
    orders = []
    for state in states.values():
        if id(state) in numbers:
            continue
        number = numbers[id(state)] = len(numbers)
        orders.append(sorted(state.slots.items()))
        for part in ("memory", "chunks"):
            for key, tensor in getattr(state, part).items():
                tensors[f"{number}/{part}/{key}"] = tensor.contiguous()
    tags = {tag: numbers[id(state)] for tag, state in states.items()}
    write_tensors(path, tensors, {"tags": tags, "orders": orders})


def write_tensors(path: str, tensors: dict[str, Tensor], header: dict | None = None) -> None:
    """Write tensors and sync the file. Raises RunError."""
    try:
        save_file(tensors, path, metadata={HEADER: json.dumps(header)})
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: the learner's state cannot be written ({one_line(error)})"
        ) from error


def read_tensors(path: str) -> dict[str, Tensor]:
    """Return what `write_tensors` wrote. Raises RunError for any other file."""
    try:
        return load_file(checked(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: the learner's state cannot be read ({one_line(error)})") from error


def read(path: str, device: str) -> tuple[dict[str, MemoryState], Tensor]:
    """Return (states by tag, state of the generator) that `write` wrote. Raises RunError for any
    other file.
    """
    try:
        with safe_open(checked(path), "pt", device=device) as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        states = [
            MemoryState({}, {}, {int(level): [int(s) for s in slots] for level, slots in order})
            for order in header["orders"]
        ]
        generator = tensors.pop(GENERATOR).cpu()
        for key, tensor in tensors.items():
            number, part, name = key.split("/", 2)
            if part not in ("memory", "chunks"):
                raise ValueError(f"{key} is neither memory nor chunks")
            getattr(states[int(number)], part)[name] = tensor
        return {str(tag): states[number] for tag, number in header["tags"].items()}, generator
    except (
        OSError,
        SafetensorError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        raise RunError(f"{path}: the learner's state cannot be read ({one_line(error)})") from error
