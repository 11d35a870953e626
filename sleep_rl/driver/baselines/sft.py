"""Plain sequential fine-tuning: the newest expert, on each day's own texts, day after day."""

from __future__ import annotations

from sleep_rl.contracts.records import TEACHER, Day
from sleep_rl.driver.baselines.registry import BASE
from sleep_rl.driver.baselines.training import train
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import RunContext

SFT = "sft"
STEPS = 200  # per day


def after_night(run: RunContext, day: Day, night: int, steps: int) -> None:
    """Continue from the state after the day before; evaluate; save the state."""
    learn = run.crew.learn
    learn.load_state(BASE if night == 1 else SFT)
    train(run, SFT, day.name, list(run.task.sft_texts(day)), steps)
    learn.save_state(SFT)
    run.crew.push(SFT, TEACHER)
    evaluate(run, after=f"night {night}", lived=night, method=SFT, weights=SFT)
