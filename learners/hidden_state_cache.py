"""Cache of a teacher's last hidden states: within a night the teacher does not change (paper.md
section 3), and its own sequences are drawn many times.

Shape suffixes: T tokens of a completion, D hidden size, N rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

CACHE_BYTES = 512 << 20
"""Host memory of a rank's cache: little beside the weights that a host loads. It holds all
sequences of a small model's night, and about a thousand of fifty tokens of an 8B model's.
"""


class Reading(NamedTuple):
    """What a teacher reads of one row."""

    teacher: int  # see contracts.records.TrainingRow.teacher
    prompt_T: tuple[int, ...]
    completion_T: tuple[int, ...]


class HiddenStateCache:
    """Last hidden states [T, D] at the positions that predict a completion, in host memory up to
    `limit` bytes; the least recently used entries are evicted first.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.bytes = 0
        self._entries: dict[Reading, Tensor] = {}  # least recently used first

    def get(self, key: Reading) -> Tensor | None:
        """Return the hidden states [T, D] of a reading, None when they are not cached."""
        hidden_TD = self._entries.pop(key, None)
        if hidden_TD is not None:
            self._entries[key] = hidden_TD
        return hidden_TD

    def put(self, key: Reading, hidden_TD: Tensor) -> None:
        """Cache a copy, unless it alone is larger than the limit."""
        size = hidden_TD.nbytes
        if size > self.limit or key in self._entries:
            return
        self._entries[key] = hidden_TD.detach().to("cpu", copy=True)
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= self._entries.pop(next(iter(self._entries))).nbytes

    def clear(self) -> None:
        """Drop everything: the teacher changed."""
        self._entries.clear()
        self.bytes = 0
