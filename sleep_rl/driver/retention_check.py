"""The retention check: roll back a night that lowers an earlier accuracy too much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import TEACHER
from sleep_rl.dreaming.dream import DREAMER
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

# Tags of the memory states from before a night, to which a rollback returns.
BEFORE = "before the night"
POLICY_BEFORE = "policy before the night"
ROUNDING = 1e-9  # of a difference of two shares


@dataclass(frozen=True)
class Drop:
    """The largest drop below the best accuracy so far, with its column of the retention matrix."""

    column: str
    before: float
    after: float


def enabled(config: Config) -> bool:
    """Return whether evaluate.max_drop is set."""
    return config.evaluate.max_drop is not None


@stage("retention_check/{night}", switch="evaluate.max_drop", when=enabled)
def save_states(run: RunContext, night: int, policy: bool) -> None:
    """Save the memory states before a night. `policy`: the dreaming policy has a state, too."""
    run.crew.learn.save_state(BEFORE)
    if policy:
        run.crew.learn.save_state(POLICY_BEFORE, DREAMER)


def best_so_far(best: dict[str, float], row: dict[str, float]) -> dict[str, float]:
    """Return the best accuracy of each column, once `row` was accepted."""
    return {column: max(best.get(column, 0.0), row.get(column, 0.0)) for column in best | row}


def excessive_drop(config: Config, best: dict[str, float], row: dict[str, float]) -> Drop | None:
    """Return the largest drop of a row below the best of each column so far if it exceeds
    evaluate.max_drop, else None. Small drops over several nights add up.

    It compares the columns that both have: the known and every earlier day.
    """
    columns = sorted(best.keys() & row.keys())
    if not enabled(config) or not columns:
        return None
    worst = max(columns, key=lambda column: best[column] - row[column])
    if best[worst] - row[worst] <= config.evaluate.max_drop + ROUNDING:
        return None
    return Drop(worst, best[worst], row[worst])


@stage("rollback/{night}", switch="evaluate.max_drop", when=enabled)
def roll_back(
    run: RunContext, night: int, drop: Drop, policy: bool, answered: Sequence[dict[str, list]]
) -> dict[str, float]:
    """Restore the memory and the dreaming policy from before the night; return what `evaluate` then
    returns.

    The rejected memory is saved as <run>/memory/night-<n>-rejected. The gradients of the day stay
    in the open chunks.
    """
    allowed = run.config.evaluate.max_drop
    rejected = os.path.join(run.folder, "memory", f"night-{night}-rejected")
    run.crew.learn.save_memory(rejected)
    run.crew.learn.load_state(BEFORE)
    if policy:
        run.crew.learn.save_state(DREAMER, POLICY_BEFORE)
    run.crew.push(TEACHER, TEACHER)
    run.index.roll_back(night)
    run.journal.log(
        "rolled_back",
        night=night,
        column=drop.column,
        before=drop.before,
        after=drop.after,
        allowed=allowed,
        path=rejected,
    )
    run.console.say(
        f"night {night} rolled back: {drop.column} fell from its best, {drop.before:.2f}, to "
        f"{drop.after:.2f}, evaluate.max_drop is {allowed:g}; the rejected memory is in {rejected}"
    )
    return evaluate(run, after=f"night {night}", lived=night, answered=answered)
