"""Baselines in the same run: plain sequential fine-tuning, and joint training on everything.

Both use the learner, the model and the experts of the sleeping model; only what is trained on
differs.
"""

from __future__ import annotations

import random

from sleep_rl.contracts.records import TEACHER, Day, TrainingRow, TrainingText
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

# Tags of memory states in the learner.
SLEEP = "sleep"
SFT = "sft"
BASE = "base"


def save_states(run: RunContext) -> None:
    """Save the present memory, from which both baselines start."""
    run.crew.learn.save_state(BASE)
    run.crew.learn.save_state(SFT)


@stage("sft/{night}", switch="baselines.sft", when=lambda config: config.baselines.sft)
def sft(run: RunContext, day: Day, night: int) -> None:
    """Fine-tune the next expert on the day's own texts by cross entropy, and evaluate it."""
    learn = run.crew.learn
    learn.save_state(SLEEP)
    learn.load_state(SFT)
    train(run, "sft", day.name, list(run.task.sft_texts(day)), run.config.baselines.sft_steps)
    learn.save_state(SFT)
    run.crew.push("sft", TEACHER)
    evaluate(run, after=f"night {night}", lived=night, method="sft", weights="sft")
    learn.load_state(SLEEP)


@stage("joint", switch="baselines.joint", when=lambda config: config.baselines.joint)
def joint(run: RunContext) -> None:
    """Train one expert on the true answers of all days and of what was known at once: the upper
    bound. Evaluate it.
    """
    learn = run.crew.learn
    nights = len(run.task.days())
    learn.save_state(SLEEP)
    learn.load_state(BASE)
    train(run, "joint", "all", list(run.task.joint_texts()), run.config.baselines.joint_steps)
    run.crew.push("joint", TEACHER)
    evaluate(run, after=f"night {nights}", lived=nights, method="joint", weights="joint")
    learn.load_state(SLEEP)


def train(run: RunContext, method: str, day: str, texts: list[TrainingText], steps: int) -> None:
    """Train the newest expert by cross entropy for `steps` optimizer steps, over shuffled epochs of
    the texts.
    """
    rng = random.Random(f"{method} {day} {run.config.run.seed}")
    batch = run.config.sleep.batch
    rows = [TrainingRow(*run.codec.baseline(text)) for text in texts]
    queue: list[TrainingRow] = []
    run.crew.learn.open_night(1, slot="next_or_newest")
    with run.console.phase(f"{method}: {day}", total=steps) as tick:
        for step in range(steps):
            while len(queue) < batch:
                queue += rng.sample(rows, len(rows))
            metrics = run.crew.learn.sft_step(queue[:batch], step, steps)
            queue = queue[batch:]
            run.journal.log(
                "baseline", method=method, day=day, step=step, steps=steps, loss=metrics["loss"]
            )
            tick(1, f"loss {metrics['loss']:.3f}")
    run.crew.learn.commit_night()
