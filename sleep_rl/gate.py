"""The retention gate: a night that costs too much of what was there before is rolled back, and kept for inspection."""

from __future__ import annotations

import os

from sleep_rl.contracts import TEACHER
from sleep_rl.evaluate import evaluate
from sleep_rl.life import Life
from sleep_rl.stages import stage

BEFORE = "before the night"  # tag of the memory that the learner keeps


def remember(life: Life) -> None:
    """Keeps the memory that a rejected night returns to, where one can be rejected."""
    if life.config.evaluate.max_drop is not None:
        keep(life)


@stage
def keep(life: Life) -> None:
    """The gate's own copy of the memory."""
    life.crew.learn.keep(BEFORE)


def passed(life: Life, night: int, before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """The row of accuracies that holds after the night: `after`, or that of the memory it was rolled back to.

    Compared are the columns that were there before the night: the known, and every earlier day. A rejected night's
    memory stays beside the run as `memory/night-<n>-rejected`; the gradients of its day stay in the open chunks.
    """
    allowed = life.config.evaluate.max_drop
    lost = {column: before[column] - after[column] for column in before.keys() & after.keys()}
    if allowed is None or not lost or max(lost.values()) <= allowed:
        return after
    worst = max(sorted(lost), key=lost.__getitem__)
    roll_back(life, night, worst, before[worst], after[worst])
    return evaluate(life, after=f"night {night}", lived=night)


@stage
def roll_back(life: Life, night: int, column: str, before: float, after: float) -> None:
    """Puts the night's memory aside and the one before it back."""
    allowed = life.config.evaluate.max_drop
    aside = os.path.join(life.folder, "memory", f"night-{night}-rejected")
    life.crew.learn.save(aside)
    life.crew.learn.use(BEFORE)
    life.crew.push(TEACHER, TEACHER)
    life.index.forget(night)
    life.journal.log("rolled_back", night=night, column=column, before=before, after=after, allowed=allowed, path=aside)
    life.console.say(f"night {night} rolled back: {column} fell from {before:.2f} to {after:.2f}, allowed by "
                     f"evaluate.max_drop is {allowed:g}; its memory is kept in {aside}")
