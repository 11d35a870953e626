"""The retention gate: a night that costs too much of what was there before is rolled back, and kept
for inspection.
"""

from __future__ import annotations

import os

from sleep_rl.contracts.records import TEACHER
from sleep_rl.dreaming.cycle import DREAMER
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

# tags of the memories that the learner keeps
BEFORE, POLICY_BEFORE = "before the night", "policy before the night"


def remember(run: RunContext, policy: bool) -> None:
    """Keeps the memories that a rejected night returns to, where one can be rejected. `policy`:
    there is a dreaming one.
    """
    if run.config.evaluate.max_drop is not None:
        keep(run, policy)


@stage
def keep(run: RunContext, policy: bool) -> None:
    """The gate's own copies."""
    run.crew.learn.save_state(BEFORE)
    if policy:
        run.crew.learn.save_state(POLICY_BEFORE, DREAMER)


def passed(
    run: RunContext, night: int, before: dict[str, float], after: dict[str, float], policy: bool
) -> tuple[dict[str, float], bool]:
    """(row of accuracies that holds after the night, whether the night stays): the row is `after`,
    or that of the memory it was rolled back to. `policy`: there was a dreaming policy before the
    night.

    Compared are the columns that were there before the night: the known, and every earlier day. A
    rejected night's memory stays beside the run as `memory/night-<n>-rejected`; the gradients of
    its day stay in the open chunks.
    """
    allowed = run.config.evaluate.max_drop
    lost = {column: before[column] - after[column] for column in before.keys() & after.keys()}
    if allowed is None or not lost or max(lost.values()) <= allowed:
        return after, True
    worst = max(sorted(lost), key=lost.__getitem__)
    roll_back(run, night, worst, before[worst], after[worst], policy)
    return evaluate(run, after=f"night {night}", lived=night), False


@stage
def roll_back(
    run: RunContext, night: int, column: str, before: float, after: float, policy: bool
) -> None:
    """Puts the night's memory aside and the one before it back, and so the dreaming policy."""
    allowed = run.config.evaluate.max_drop
    aside = os.path.join(run.folder, "memory", f"night-{night}-rejected")
    run.crew.learn.save_memory(aside)
    run.crew.learn.load_state(BEFORE)
    if policy:
        run.crew.learn.save_state(DREAMER, POLICY_BEFORE)
    run.crew.push(TEACHER, TEACHER)
    run.index.forget(night)
    run.journal.log(
        "rolled_back",
        night=night,
        column=column,
        before=before,
        after=after,
        allowed=allowed,
        path=aside,
    )
    run.console.say(
        f"night {night} rolled back: {column} fell from {before:.2f} to "
        f"{after:.2f}, allowed by "
        f"evaluate.max_drop is {allowed:g}; its memory is kept in {aside}"
    )
