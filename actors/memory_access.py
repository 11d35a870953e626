"""Reads and writes the memory tensors of a model that runs inside vLLM, from outside of vLLM.

Keys are those of `sleep_rl.model.memory.tensors_of`: `<level>.<part>#<slot>` and `<level>.state`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from safetensors.torch import load_file, save_file
from torch import Tensor

from sleep_rl.model.memory import tensors_of, write_tensors
from sleep_rl.model.tensor_digest import digest

SHARED_MEMORY = "/dev/shm"
"""Where the processes of a node exchange tensors; the temporary folder where there is none."""


class MemoryAccess:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`), one worker per rank.

    Tensors are passed directly where the worker lives in the caller's process, and through a
    safetensors file otherwise: vLLM cannot send tensors as arguments.
    """

    def memory_write(self, tensors: dict[str, Tensor] | None = None, path: str = "") -> None:
        """Copy `tensors`, or those in the file `path`, into the model.

        In place, so that the addresses in captured CUDA graphs stay valid.
        """
        if tensors is None:
            tensors = load_file(path)
        write_tensors(self.model_runner.get_model(), tensors)

    def memory_read(self, path: str = "") -> dict[str, Tensor]:
        """Return CPU copies of all memory tensors.

        With `path` the first rank writes them to that file instead, and nothing is returned.
        """
        model_tensors = tensors_of(self.model_runner.get_model())
        copies = {key: tensor.to("cpu", copy=True) for key, tensor in model_tensors.items()}
        if not path:
            return copies
        if self.rank == 0:
            save_file(copies, path)
        return {}

    def memory_digests(self, keys: list[str]) -> dict[str, str]:
        """Return key -> digest of the bytes that are in the model now."""
        model_tensors = tensors_of(self.model_runner.get_model())
        return {key: digest(model_tensors[key]) for key in keys}


def not_arrived(expected: dict[str, str], digests_per_rank: Iterable[dict[str, str]]) -> str:
    """Return what of a write did not arrive, in words; empty when all of it did.

    `expected`: key -> digest of what was written; `digests_per_rank`: memory_digests of its keys.
    """
    for rank, digests in enumerate(digests_per_rank):
        wrong = [key for key in expected if digests[key] != expected[key]]
        if wrong:
            return f"{wrong[0]} did not arrive in the model (rank {rank}, {len(wrong)} tensors)"
    return ""


@contextmanager
def shared_folder() -> Iterator[str]:
    """Path of a folder in shared memory that is deleted when the block ends."""
    parent = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.TemporaryDirectory(prefix="sleep_rl-", dir=parent) as folder:
        yield folder


@contextmanager
def shared_file() -> Iterator[str]:
    """Path of a file in shared memory that is deleted when the block ends."""
    with shared_folder() as folder:
        yield os.path.join(folder, "memory.safetensors")
