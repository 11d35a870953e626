"""Read and write the memory tensors of a model inside vLLM's workers.

Memory keys are those of `sleep_rl.model.memory.tensors_of`: `<level>.<part>#<slot>` and
`<level>.state`.
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
"""Where the processes of a node exchange tensors; without it, the temporary folder."""


class MemoryAccess:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`), one worker per rank.

    Tensors are passed directly if the worker runs in the caller's process, else in a safetensors
    file: vLLM cannot send tensors as arguments.
    """

    def memory_write(self, tensors: dict[str, Tensor] | None = None, path: str = "") -> None:
        """Copy `tensors`, or those of the file `path`, into the model: in place, so that addresses
        in captured CUDA graphs stay valid.
        """
        if tensors is None:
            tensors = load_file(path)
        write_tensors(self.model_runner.get_model(), tensors)

    def memory_read(self, path: str = "") -> dict[str, Tensor]:
        """Return CPU copies of all memory tensors by key.

        With `path` the first rank writes them to that file instead, and {} is returned.
        """
        model_tensors = tensors_of(self.model_runner.get_model())
        copies = {key: tensor.to("cpu", copy=True) for key, tensor in model_tensors.items()}
        if not path:
            return copies
        if self.rank == 0:
            save_file(copies, path)
        return {}

    def memory_digests(self, keys: list[str]) -> dict[str, str]:
        """Return key -> digest of the tensor in the model."""
        model_tensors = tensors_of(self.model_runner.get_model())
        return {key: digest(model_tensors[key]) for key in keys}


def write_mismatch(expected: dict[str, str], digests_per_rank: Iterable[dict[str, str]]) -> str:
    """Return which tensor in the model differs from the written one, on which rank; empty if none.

    `expected`: key -> digest of a written tensor; `digests_per_rank`: memory_digests of these keys.
    """
    for rank, digests in enumerate(digests_per_rank):
        wrong = [key for key in expected if digests[key] != expected[key]]
        if wrong:
            return (
                f"{wrong[0]} in the model differs from what was written (rank {rank}, {len(wrong)} "
                "tensors)"
            )
    return ""


@contextmanager
def shared_folder() -> Iterator[str]:
    """Yield the path of a folder in shared memory; delete it when the block ends."""
    parent = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.TemporaryDirectory(prefix="sleep_rl-", dir=parent) as folder:
        yield folder


@contextmanager
def shared_file() -> Iterator[str]:
    """Yield the path of a file in shared memory; delete it when the block ends."""
    with shared_folder() as folder:
        yield os.path.join(folder, "memory.safetensors")
