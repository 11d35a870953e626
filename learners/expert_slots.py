"""Allocation of slots: which expert of a level a night trains, a free one or by `sleep.on_full`.

Shape suffix: S slots of a level (slot 0 is the level's base expert).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import SlotChoice
from sleep_rl.model.memory import BASE_SLOT, LOCKED, PARTS, MemoryLevel


@dataclass(frozen=True)
class SlotAssignment:
    """The slot of a night's expert, and the initial values of the expert."""

    slot: int
    from_stored: bool  # initialised with the weights stored in the slot; else as a new expert
    absorbed: int = 0  # slot of another expert that is merged into this one (0: none)

    def first_values(self, level: MemoryLevel, generator: torch.Generator) -> list[Tensor]:
        """Return the initial router row, A and B of the expert."""
        values = [getattr(level, part)[self.slot].detach().clone() for part in PARTS]
        if not self.from_stored:
            router, w_in, w_out = values
            router.copy_(torch.randn(router.shape, generator=generator) * 0.02)
            w_in.copy_(torch.randn(w_in.shape, generator=generator) * w_in.shape[-1] ** -0.5)
            w_out.zero_()
        return values


class SlotAllocator:
    """Assigns slots, and records in which order the experts of each level were unlocked."""

    def __init__(self) -> None:
        self._in_use: dict[int, list[int]] = {}  # level -> slots in use, oldest first
        self._open: tuple[int, SlotAssignment] | None = None

    def assign(self, number: int, states_S: list[int], sleep, choice: SlotChoice) -> SlotAssignment:
        """Return the assignment of the next night in level `number`; states_S: of its slots.

        choice: see `sleep_rl.contracts.roles.SlotChoice`. An expert in a free slot starts as the
        identity. Without `sleep.expansion` the newest expert is trained further. When no slot is
        free and `choice` is "next", `sleep.on_full` decides:

        merge: the oldest expert is trained further, and learns what the second oldest contains.
        recycle_oldest: a new expert replaces the oldest.
        error: raises InputError.

        The student starts without the merged or replaced expert.
        """
        experts = range(BASE_SLOT + 1, len(states_S))
        used = [s for s in experts if states_S[s] != LOCKED]
        free = [s for s in experts if states_S[s] == LOCKED]
        known = [s for s in self._in_use.get(number, []) if s in used]
        # experts of a loaded memory, whose order is unknown, come after these, by number
        oldest_first = known + [s for s in used if s not in known]
        if used and (choice == "reuse_newest" or not sleep.expansion):
            assignment = SlotAssignment(oldest_first[-1], from_stored=True)
        elif free:
            assignment = SlotAssignment(free[0], from_stored=True)
        elif choice == "next_or_newest":
            assignment = SlotAssignment(oldest_first[-1], from_stored=True)
        else:
            assignment = self._in_full_level(number, oldest_first, sleep.on_full)
        self._in_use[number] = oldest_first
        self._open = number, assignment
        return assignment

    @staticmethod
    def _in_full_level(number: int, oldest_first: list[int], on_full: str) -> SlotAssignment:
        if on_full == "merge":
            absorbed = oldest_first[1] if len(oldest_first) > 1 else 0
            return SlotAssignment(oldest_first[0], from_stored=True, absorbed=absorbed)
        if on_full == "recycle_oldest":
            return SlotAssignment(oldest_first[0], from_stored=False)
        raise InputError(
            f"level {number}: all {len(oldest_first)} experts are in use and sleep.on_full is "
            "error; allowed are at most model.experts consolidations between two resets of a level"
        )

    def commit(self) -> None:
        """Make the open night's expert the newest of its level; a merged one is no longer in
        use.
        """
        if self._open:
            number, assignment = self._open
            gone = (assignment.slot, assignment.absorbed)
            rest = [s for s in self._in_use[number] if s not in gone]
            self._in_use[number] = [*rest, assignment.slot]
            self._open = None

    def state(self) -> dict[int, list[int]]:
        """Return level -> slots in use, oldest first."""
        return {number: list(slots) for number, slots in self._in_use.items()}

    def restore(self, state: dict[int, list[int]]) -> None:
        """Restore what `state` returned; an open night's assignment is dropped."""
        self._in_use = {number: list(slots) for number, slots in state.items()}
        self._open = None
