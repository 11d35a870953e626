"""Plain sequential fine-tuning of the newest expert on each day's texts.

A task decides what its texts are. Those of task documents are the documents themselves: cross
entropy on the raw documents, of the budget of a night.
"""

from __future__ import annotations

from sleep_rl.contracts.records import TEACHER, Day
from sleep_rl.driver.baselines.registry import BASE
from sleep_rl.driver.baselines.training import train
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import RunContext

SFT = "sft"
STEPS = 200  # per day
NATURAL_STEPS = None  # per day


def after_night(run: RunContext, day: Day, night: int, steps: int) -> None:
    """Continue from the state of the previous day, train on this day, save and evaluate."""
    learn = run.crew.learn
    learn.load_state(BASE if night == 1 else SFT)
    texts = list(run.task.sft_texts(day))
    if texts:  # a day may only delete documents
        train(run, SFT, day.name, texts, steps)
    learn.save_state(SFT)
    run.crew.push(SFT, TEACHER)
    evaluate(run, after=f"night {night}", lived=night, method=SFT, weights=SFT)
