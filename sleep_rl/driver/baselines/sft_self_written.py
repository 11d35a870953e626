"""Sequential fine-tuning on what the sleeping model's nights trained on: the same self-written
sequences, self-replay and batch composition, with the token itself as the target in place of the
teacher's distribution.

There are no student samples and no reward, as in the off-policy part of a night.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from sleep_rl.contracts.records import TEACHER, Day, TrainingRow
from sleep_rl.driver.baselines.registry import BASE
from sleep_rl.driver.baselines.training import train_on
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.night.batches import BatchComposer
from sleep_rl.night.plan import CONTEXT, fitted, plan_consolidation
from sleep_rl.night.saved_data import load_data
from sleep_rl.session.context import RunContext

NAME = "sft_self_written"
STEPS = None  # as the night
NEEDS_DATA = True


def after_night(run: RunContext, day: Day, night: int, steps: int) -> None:
    """Continue from the state of the previous day, train on this night's data, save and
    evaluate.
    """
    learn = run.crew.learn
    learn.load_state(BASE if night == 1 else NAME)
    train_on(run, NAME, day.name, _batches(run, day, night, steps), steps)
    learn.save_state(NAME)
    run.crew.push(NAME, TEACHER)
    evaluate(run, after=f"night {night}", lived=night, method=NAME, weights=NAME)


def _batches(run: RunContext, day: Day, night: int, steps: int) -> Iterator[list[TrainingRow]]:
    """Yield the rows of each step, in the shares of the night; the learner's `sft_step` reads their
    tokens and weights only.
    """
    plan = plan_consolidation(run.config, night, CONTEXT, steps, day)
    rng = random.Random(f"{NAME} {night} {run.config.run.seed}")
    data = load_data(run.folder, night)
    plan = fitted(plan, run.config, len(data.new), len(data.rehearsed))
    plan = replace(plan, on_policy=0.0)
    composer = BatchComposer(run, plan, data, rng, sample=lambda requests, number: [])
    size = plan.steps_per_round
    for number, start in enumerate(range(0, steps, size)):
        composed = composer.round(number, range(start, min(start + size, steps)))
        for batch in composed.batches:
            yield batch.rows
