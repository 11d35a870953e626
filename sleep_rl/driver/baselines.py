"""What sleep is compared with, in the same run: plain sequential fine-tuning, and training on
everything at once.

Both use the learner, the model and the experts of the sleeping model; only what is trained on
differs.
"""

from __future__ import annotations

import random

from sleep_rl.contracts.records import TEACHER, Day, Sequence, Text
from sleep_rl.driver.evaluation import evaluate
from sleep_rl.session.context import Life
from sleep_rl.session.resumable import stage

SLEEP, SFT, BASE = "sleep", "sft", "base"  # tags of the memories that the learner keeps apart


def remember(life: Life) -> None:
    """Keeps the untouched memory, from which both baselines start."""
    life.crew.learn.keep(BASE)
    life.crew.learn.keep(SFT)


def sft(life: Life, day: Day, night: int) -> None:
    """Plain SFT: the next expert, trained on the day's own texts by cross entropy, day after
    day.
    """
    if life.config.baselines.sft:
        sft_night(life, day, night)


@stage
def sft_night(life: Life, day: Day, night: int) -> None:
    """One day of plain SFT, and its evaluation."""
    life.crew.learn.keep(SLEEP)
    life.crew.learn.use(SFT)
    train(life, "sft", day.name, list(life.task.sft_texts(day)), life.config.baselines.sft_steps)
    life.crew.learn.keep(SFT)
    life.crew.push("sft", TEACHER)
    evaluate(life, after=f"night {night}", lived=night, method="sft", weights="sft")
    life.crew.learn.use(SLEEP)


def joint(life: Life) -> None:
    """Upper bound: one expert trained on the true answers of all days and of what was known, all at
    once.
    """
    if life.config.baselines.joint:
        joint_life(life)


@stage
def joint_life(life: Life) -> None:
    """The upper bound's training and its evaluation."""
    nights = len(life.task.days())
    life.crew.learn.keep(SLEEP)
    life.crew.learn.use(BASE)
    train(life, "joint", "all", list(life.task.joint_texts()), life.config.baselines.joint_steps)
    life.crew.push("joint", TEACHER)
    evaluate(life, after=f"night {nights}", lived=nights, method="joint", weights="joint")
    life.crew.learn.use(SLEEP)


def train(life: Life, method: str, day: str, texts: list[Text], steps: int) -> None:
    """`steps` optimizer steps over shuffled passes through the texts."""
    rng, batch = random.Random(f"{method} {day} {life.config.run.seed}"), life.config.sleep.batch
    rows = [Sequence(*life.texts.baseline(text)) for text in texts]
    queue: list[Sequence] = []
    life.crew.learn.open_night(1, on_full="newest")
    with life.console.phase(f"{method}: {day}", total=steps) as tick:
        for step in range(steps):
            while len(queue) < batch:
                queue += rng.sample(rows, len(rows))
            metrics = life.crew.learn.sft_step(queue[:batch], step, steps)
            queue = queue[batch:]
            life.journal.log(
                "baseline", method=method, day=day, step=step, steps=steps, loss=metrics["loss"]
            )
            tick(1, f"loss {metrics['loss']:.3f}")
    life.crew.learn.close_night(True)
