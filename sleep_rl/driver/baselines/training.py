"""Training of a baseline: cross entropy in the newest expert of level 1."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sleep_rl.contracts.records import TrainingRow, TrainingText
from sleep_rl.session.context import RunContext


def train(run: RunContext, method: str, day: str, texts: list[TrainingText], steps: int) -> None:
    """Take `steps` optimizer steps over shuffled epochs of the texts.

    A step has sleep.batch rows; in natural language, like those of the night, reading.rows more.
    `method` and `day` are fields of the journal records.
    """
    rng = random.Random(f"{method} {day} {run.config.run.seed}")
    size = run.config.sleep.batch
    if run.codec.natural:
        size += run.config.reading.rows
    rows = [TrainingRow(*run.codec.baseline(text)) for text in texts]
    train_on(run, method, day, _batches(rows, size, rng), steps)


def train_on(
    run: RunContext, method: str, day: str, batches: Iterator[list[TrainingRow]], steps: int
) -> None:
    """Take `steps` optimizer steps, one on each of the first batches."""
    run.crew.learn.open_night(1, slot="next_or_newest")
    with run.console.phase(f"{method}: {day}", total=steps) as tick:
        for step in range(steps):
            loss = run.crew.learn.sft_step(next(batches), step, steps)["loss"]
            run.journal.log("baseline", method=method, day=day, step=step, steps=steps, loss=loss)
            tick(1, f"loss {loss:.3f}")
    run.crew.learn.commit_night()


def _batches(rows: list[TrainingRow], size: int, rng: random.Random) -> Iterator[list[TrainingRow]]:
    """Yield batches of shuffled epochs without end."""
    queue: list[TrainingRow] = []
    while True:
        while len(queue) < size:
            queue += rng.sample(rows, len(rows))
        yield queue[:size]
        queue = queue[size:]
