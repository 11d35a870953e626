"""Step 5 of dreaming: train the dreaming policy on the rewarded dreams (M-step of ReST-EM)."""

from __future__ import annotations

import math
import random

from sleep_rl.contracts.records import TrainingRow
from sleep_rl.dreaming.dream import DREAMER, SELF, Dream
from sleep_rl.dreaming.lessons import tasks_by_id
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


@stage("dream/{night}/{number}/train_policy", switch="dream.rounds", optional=True)
def train_policy(
    run: RunContext, night: int, number: int, rewarded: list[Dream], policy: bool
) -> bool:
    """Fine-tune the expert of the dreaming policy on the rewarded dreams, with C in context.

    `policy`: the policy already has a memory state of its own. Returns whether it has one after the
    call.
    """
    options = run.config.dream.policy
    learner = run.crew.learn
    if not rewarded or options.epochs == 0:
        return policy
    queue = _rows(run, night, number, rewarded)
    steps = math.ceil(len(queue) / options.batch)
    learner.save_state(SELF)
    continued = policy and options.init == "previous"
    if continued:
        learner.load_state(DREAMER)
    learner.open_night(1, slot="reuse_newest" if continued else "next_or_newest")
    title = f"night {night}: dreaming policy trains on {len(rewarded)} dreams"
    with run.console.phase(title, total=steps) as tick:
        for step in range(steps):
            rows = queue[step * options.batch :][: options.batch]
            loss = learner.sft_step(rows, step, steps, options.lr)["loss"]
            run.journal.log("policy", night=night, round=number, step=step, steps=steps, loss=loss)
            tick(1, f"loss {loss:.3f}")
    learner.commit_night()
    learner.save_state(DREAMER)
    learner.load_state(SELF)
    return True


def _rows(run: RunContext, night: int, number: int, rewarded: list[Dream]) -> list[TrainingRow]:
    """Return the rows of all epochs, each epoch shuffled."""
    codec = run.codec
    tasks = tasks_by_id(run, night)
    opener = codec.ids(run.task.dream_opener)
    rows = [
        TrainingRow(codec.context(tasks[dream.task].context) + opener, dream.ids)
        for dream in rewarded
    ]
    rng = random.Random(f"follow {run.config.run.seed} {night} {number}")
    epochs = range(run.config.dream.policy.epochs)
    return [row for _ in epochs for row in rng.sample(rows, len(rows))]
