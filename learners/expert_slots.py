"""Which expert of a level a night may write into: the next free one, or what `sleep.on_full`
says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sleep_rl.contracts.errors import InputError
from sleep_rl.model.memory import LOCKED, PARTS, MemoryLevel


@dataclass(frozen=True)
class SlotAssignment:
    """The slot of a night's expert, how it begins, and the slot that it takes over besides (0:
    none).
    """

    slot: int
    kept: bool  # it begins as what is stored there, not as the identity
    absorbed: int = 0

    def start(self, level: MemoryLevel, generator: torch.Generator) -> list[Tensor]:
        """First values of the trained expert's router row, A and B."""
        values = [getattr(level, part)[self.slot].detach().clone() for part in PARTS]
        if not self.kept:
            router, w_in, w_out = values
            router.copy_(torch.randn(router.shape, generator=generator) * 0.02)
            w_in.copy_(torch.randn(w_in.shape, generator=generator) * w_in.shape[-1] ** -0.5)
            w_out.zero_()
        return values


class SlotAllocator:
    """In which order the experts of each level came into use."""

    def __init__(self) -> None:
        self._ages: dict[int, list[int]] = {}  # level -> slots, oldest first
        self._open: tuple[int, SlotAssignment] | None = None

    def place(self, number: int, states_S: list[int], sleep, on_full: str) -> SlotAssignment:
        """The place of the coming night in level `number`, whose slots have these states.

        A free slot is taken as it lies there. Without `sleep.expansion` the newest expert is
        trained on. In a full level `merge` trains the oldest expert on and lets it take over the
        second oldest, which the student lacks; `recycle_oldest` begins anew in place of the oldest,
        which the student lacks; `newest` trains the newest one on (baselines); `error` raises
        InputError. `again` trains the newest one on in any level (the dreaming policy).
        """
        used = [s for s in range(1, len(states_S)) if states_S[s] != LOCKED]
        free = [s for s in range(1, len(states_S)) if states_S[s] == LOCKED]
        known = [s for s in self._ages.get(number, []) if s in used]
        # of a loaded memory nothing else is known
        oldest = known + [s for s in used if s not in known]
        if used and (not sleep.expansion or on_full == "again"):
            place = SlotAssignment(oldest[-1], kept=True)
        elif free:
            place = SlotAssignment(free[0], kept=True)
        elif on_full == "merge" and len(used) > 1:
            place = SlotAssignment(oldest[0], kept=True, absorbed=oldest[1])
        elif on_full in ("merge", "recycle_oldest"):
            place = SlotAssignment(oldest[0], kept=on_full == "merge")
        elif on_full == "newest":
            place = SlotAssignment(oldest[-1], kept=True)
        else:
            raise InputError(
                f"level {number}: all {len(used)} experts are in use and "
                "sleep.on_full is error; allowed "
                "are at most model.experts consolidations between two resets of a "
                "level"
            )
        self._ages[number] = oldest
        self._open = number, place
        return place

    def commit(self) -> None:
        """The night was kept: its expert is the newest now."""
        if self._open:
            number, place = self._open
            gone = (place.slot, place.absorbed)
            self._ages[number] = [s for s in self._ages[number] if s not in gone] + [place.slot]
            self._open = None

    def state(self) -> dict[int, list[int]]:
        """Level -> slots, oldest first."""
        return {number: list(slots) for number, slots in self._ages.items()}

    def restore(self, state: dict[int, list[int]]) -> None:
        """Takes back what `state` gave."""
        self._ages, self._open = {number: list(slots) for number, slots in state.items()}, None
