"""What the teacher computed for rows that come again: within a night it does not change (paper.md
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sleep_rl.contracts.records import Ids

# who reads (see contracts.records.TrainingRow.teacher), what stands in front, the completion
Reading = tuple[int, Ids, Ids]


class HiddenStateCache:
    """Last hidden states [T, D] of a teacher at the positions that predict a completion, kept in
    host memory up to `limit` bytes; what was not asked for the longest is given up first.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._held: dict[Reading, Tensor] = {}

    def get(self, key: Reading) -> Tensor | None:
        """What `put` was given, or None."""
        found = self._held.pop(key, None)
        if found is not None:
            self._held[key] = found  # now the last to go
        return found

    def put(self, key: Reading, hidden_TD: Tensor) -> None:
        """Keeps a copy, unless it alone is above the limit."""
        size = hidden_TD.nbytes
        if size > self.limit or key in self._held:
            return
        self._held[key] = hidden_TD.detach().to("cpu", copy=True)
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= self._held.pop(next(iter(self._held))).nbytes

    def clear(self) -> None:
        """A new night: another teacher."""
        self._held.clear()
        self.bytes = 0


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows in one group, or in two where padding each to its own longest row saves a
    fifth of the tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    if not order:
        return []
    whole = len(order) * lengths[order[-1]]
    cost, cut = min(
        (cut * lengths[order[cut - 1]] + (len(order) - cut) * lengths[order[-1]], cut)
        for cut in range(1, len(order) + 1)
    )
    return [order[:cut], order[cut:]] if cost < 0.8 * whole else [order]
