"""Training of a baseline: cross entropy on texts, in the newest expert of level 1."""

from __future__ import annotations

import random

from sleep_rl.contracts.records import TrainingRow, TrainingText
from sleep_rl.session.context import RunContext


def train(run: RunContext, method: str, day: str, texts: list[TrainingText], steps: int) -> None:
    """Take `steps` optimizer steps of sleep.batch rows over shuffled epochs of the texts.

    `method` and `day` are fields of the journal records.
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
            loss = run.crew.learn.sft_step(queue[:batch], step, steps)["loss"]
            queue = queue[batch:]
            run.journal.log("baseline", method=method, day=day, step=step, steps=steps, loss=loss)
            tick(1, f"loss {loss:.3f}")
    run.crew.learn.commit_night()
