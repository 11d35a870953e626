"""What a new learner needs to go on, as one safetensors file: tensors are read as tensors, and
nothing in it can run.
"""

from __future__ import annotations

import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sleep_rl.contracts.errors import RunError, one_line
from sleep_rl.files import checked

Kept = tuple[dict[str, Tensor], dict[str, Tensor], dict[int, list[int]]]
"""A memory as `LearnerWorker.keep` remembers it: its tensors, the open chunks of its levels, the
order of its experts.
"""
HEADER, GENERATOR = "learner", "generator"


def write(path: str, states: dict[str, Kept], generator: torch.Generator) -> None:
    """Writes `states` (tag -> memory) and the generator, synced to the disk; a memory under two
    tags is written once. Raises RunError.
    """
    numbers: dict[int, int] = {}
    tensors, orders = {GENERATOR: generator.get_state()}, []
    for state in states.values():
        if id(state) not in numbers:
            number = numbers[id(state)] = len(numbers)
            memory, chunks, order = state
            orders.append(sorted(order.items()))
            tensors |= {
                f"{number}/memory/{key}": tensor.contiguous() for key, tensor in memory.items()
            }
            tensors |= {
                f"{number}/chunks/{key}": tensor.contiguous() for key, tensor in chunks.items()
            }
    write_tensors(
        path,
        tensors,
        {"tags": {tag: numbers[id(state)] for tag, state in states.items()}, "orders": orders},
    )


def write_tensors(path: str, tensors: dict[str, Tensor], header: dict | None = None) -> None:
    """Writes tensors, synced to the disk. Raises RunError."""
    try:
        save_file(tensors, path, metadata={HEADER: json.dumps(header)})
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path}: the learner's state cannot be written ({one_line(error)})"
        ) from error


def read_tensors(path: str) -> dict[str, Tensor]:
    """What `write_tensors` wrote. Raises RunError for anything else."""
    try:
        return load_file(checked(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise RunError(f"{path}: the learner's state cannot be read ({one_line(error)})") from error


def read(path: str, device: str) -> tuple[dict[str, Kept], Tensor]:
    """(tag -> memory, the generator's state), as `write` got them. Raises RunError for anything
    else.
    """
    try:
        with safe_open(checked(path), "pt", device=device) as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        kept: list[Kept] = [
            ({}, {}, {int(level): [int(slot) for slot in slots] for level, slots in order})
            for order in header["orders"]
        ]
        generator = tensors.pop(GENERATOR).cpu()
        for key, tensor in tensors.items():
            number, part, name = key.split("/", 2)
            kept[int(number)][("memory", "chunks").index(part)][name] = tensor
        return {str(tag): kept[number] for tag, number in header["tags"].items()}, generator
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
