"""Joint training of one expert on the answers of all days and of the known: an upper bound."""

from __future__ import annotations

from sleep_rl.contracts.records import TEACHER
from sleep_rl.driver.baselines.registry import BASE
from sleep_rl.driver.baselines.training import train
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import RunContext

JOINT = "joint"
STEPS = 400


def after_life(run: RunContext, steps: int) -> None:
    """Train from the initial memory, and evaluate."""
    nights = len(run.task.days())
    run.crew.learn.load_state(BASE)
    train(run, JOINT, "all", list(run.task.joint_texts()), steps)
    run.crew.push(JOINT, TEACHER)
    evaluate(run, after=f"night {nights}", lived=nights, method=JOINT, weights=JOINT)
