"""The schedule of a life: all its consolidations, in order (paper.md sections 2 and 3).

C(1..k) are the chunk lengths of the k memory levels in nights, fastest first. At the end of its
chunk a level is consolidated into the next slower one, and its base expert is updated by equation
2. The context window, sender 0, is consolidated into level 1 every night. The slowest level is
never a sender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScheduledConsolidation:
    """One Knowledge Seeding from a sender into the next slower level."""

    night: int  # from 1; 0: other models are seeded into level 1 before the first day
    sender: int  # memory level; 0: the context window
    receiver: int  # sender + 1
    due: tuple[int, ...]  # levels whose base experts are updated by equation 2, ascending
    steps: int  # optimizer steps


def schedule(
    chunks: Sequence[int],
    nights: int,
    *,
    steps: int = 1,
    reset: bool = True,
    teachers: bool = False,
    endless: bool = False,
) -> list[ScheduledConsolidation]:
    """Return all consolidations of a life of `nights` nights, in order of execution.

    `steps`: optimizer steps of a consolidation of the context window; those of a level are
    multiplied by the consolidations that it received since it last sent.
    `reset`: a sender is empty after its consolidation. `teachers`: night 0 takes place.
    `endless`: the life has no last day. Otherwise every open chunk ends with the last night.

    Within a night slow levels send before fast ones, so that a receiver is emptied before it
    receives. The base expert of a level is updated with the first consolidation of the night in
    which the level is sender or receiver, or else with that of the context window. Takes
    O(nights * levels).
    """
    levels = len(chunks)
    holds = [False] * (levels + 1)  # whether a level has something to send; entry 0 is not used
    received = [0] * (levels + 1)  # consolidations into each level since it last sent
    consolidations = []

    def consolidate(night: int, sender: int, due: tuple[int, ...]) -> None:
        total = steps * max(received[sender], 1)
        consolidations.append(ScheduledConsolidation(night, sender, sender + 1, due, total))
        received[sender + 1] += 1
        received[sender] = 0
        holds[sender + 1] = True
        if reset:
            holds[sender] = False

    if teachers:
        consolidate(0, 0, ())
    for night in range(1, nights + 1):
        is_last = night == nights and not endless
        due = [
            level for level, length in enumerate(chunks, start=1) if is_last or night % length == 0
        ]
        for sender in range(levels - 1, 0, -1):
            if night % chunks[sender - 1] == 0 and holds[sender]:
                taking_part = tuple(level for level in due if level in (sender, sender + 1))
                due = [level for level in due if level not in taking_part]
                consolidate(night, sender, taking_part)
        consolidate(night, 0, tuple(due))
    return consolidations


def by_night(
    consolidations: Sequence[ScheduledConsolidation],
) -> dict[int, list[ScheduledConsolidation]]:
    """Return night -> its consolidations, in order."""
    nights: dict[int, list[ScheduledConsolidation]] = {}
    for consolidation in consolidations:
        nights.setdefault(consolidation.night, []).append(consolidation)
    return nights


def most_experts(
    consolidations: Sequence[ScheduledConsolidation],
    levels: int,
    *,
    reset: bool = True,
    dreams: bool = False,
) -> list[int]:
    """Return the largest number of unlocked experts of each level 1..k in the life.

    Every consolidation unlocks one expert of its receiver. `dreams`: the dreams of each night
    unlock one more in level 1. `reset`: as for `schedule`.
    """
    held = [0] * (levels + 1)
    most = [0] * (levels + 1)
    for consolidation in consolidations:
        sender = consolidation.sender
        receiver = consolidation.receiver
        has_dreams = dreams and sender == 0 and consolidation.night > 0
        held[receiver] += 2 if has_dreams else 1
        most[receiver] = max(most[receiver], held[receiver])
        if reset:
            held[sender] = 0
    return most[1:]
