"""Memory states of dreaming (paper.md section 4): one more active expert per router, and the expert
of the dreaming policy.
"""

from __future__ import annotations

import random

from torch import Tensor, nn

from learners.checkpoint_io import MemoryState
from sleep_rl.contracts.records import STUDENT
from sleep_rl.model.memory import (
    ACTIVE,
    BASE_SLOT,
    FRESH,
    PARTS,
    level_number,
    memory_levels,
    patch,
)


def form_dreaming_student(model: nn.Module, seed: int) -> dict[str, int]:
    """Form a student in which every router also activates one random ACTIVE expert of its level.

    The expert is FRESH there: always on, in addition to those that the router selects. Returns
    level name -> slot, without levels that have no ACTIVE expert; deterministic given `seed`.
    """
    levels = memory_levels(model)
    chosen = {}
    for name, level in levels.items():
        states = level.state.tolist()
        active = [s for s, state in enumerate(states) if state == ACTIVE and s != BASE_SLOT]
        if active:
            chosen[name] = random.Random(f"{seed}/{name}").choice(active)
    patch(model, {name: {} for name in chosen})
    for name, slot in chosen.items():
        levels[name].set_slot_state(slot, FRESH, view=STUDENT)
    return chosen


def newest_expert(state: MemoryState, model: nn.Module) -> list[Tensor]:
    """Return the router row, A and B of the newest expert of level 1 in a saved state, for each
    layer in order.
    """
    slot = state.slots[1][-1]
    names = [name for name in memory_levels(model) if level_number(name) == 1]
    return [state.memory[f"{name}.{part}"][slot] for name in names for part in PARTS]
