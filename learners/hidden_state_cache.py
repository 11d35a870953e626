"""Cache of a teacher's last hidden states: within a night the teacher does not change (paper.md
section 3), and its own sequences are drawn many times.

Shape suffixes: T tokens of a completion, D hidden size, N rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

CACHE_BYTES = 512 << 20
"""Host memory of a rank's cache. It is small compared with the weights, and holds all sequences of
a night of a small model, or about a thousand sequences of fifty tokens of an 8B model.
"""


class TeacherInput(NamedTuple):
    """The teacher's input of one row: the key of the cache."""

    teacher: int  # see contracts.records.TrainingRow.teacher
    prompt_T: tuple[int, ...]
    completion_T: tuple[int, ...]
    shared: int = 0  # leading tokens of prompt_T that other inputs share


class HiddenStateCache:
    """LRU cache of last hidden states [T, D] at the positions that predict a completion, of at most
    `limit` bytes in host memory.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self._entries: dict[TeacherInput, Tensor] = {}  # least recently used first

    def get(self, key: TeacherInput) -> Tensor | None:
        """Return the hidden states [T, D] of an input; None when they are not cached."""
        hidden_TD = self._entries.pop(key, None)
        if hidden_TD is not None:
            self._entries[key] = hidden_TD
        return hidden_TD

    def put(self, key: TeacherInput, hidden_TD: Tensor) -> None:
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
