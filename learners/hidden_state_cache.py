"""Cache of hidden states of frozen computations: the teacher's last ones, since it does not change
within a night (paper.md section 3), and those of the layers below the memory, which never change.

Shape suffixes: T tokens of a row, D hidden size.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

CACHE_BYTES = 512 << 20
"""Host memory of each of a rank's caches. It is small compared with the weights, and holds all
sequences of a night of a small model, or about a thousand sequences of fifty tokens of an 8B model.
"""


def cache_bytes(zero_stage: int) -> int:
    """Return the size of a rank's cache; 0 under ZeRO-3, which gathers the base in each pass, so
    that all ranks must make the same passes.
    """
    return 0 if zero_stage == 3 else CACHE_BYTES


class TeacherInput(NamedTuple):
    """The teacher's input of one row: the key of the cache."""

    teacher: int  # see contracts.records.TrainingRow.teacher
    prompt_T: tuple[int, ...]
    completion_T: tuple[int, ...]
    shared: int = 0  # leading tokens of prompt_T that other inputs share


class HiddenStateCache:
    """LRU cache of hidden states [T, D] by the input that they follow from, of at most `limit`
    bytes in host memory.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self._entries: dict[Hashable, Tensor] = {}  # least recently used first

    def get(self, key: Hashable) -> Tensor | None:
        """Return the hidden states [T, D] of an input; None when they are not cached."""
        hidden_TD = self._entries.pop(key, None)
        if hidden_TD is not None:
            self._entries[key] = hidden_TD
        return hidden_TD

    def put(self, key: Hashable, hidden_TD: Tensor) -> None:
        """Store a copy on the CPU, unless it alone is larger than the limit."""
        size = hidden_TD.nbytes
        if size > self.limit or key in self._entries:
            return
        self._entries[key] = hidden_TD.detach().to("cpu", copy=True)
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= self._entries.pop(next(iter(self._entries))).nbytes

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self.bytes = 0
