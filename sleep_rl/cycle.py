"""The main job: a model lives through its days (paper.md sections 2 and 3). Start reading here."""

from __future__ import annotations

import time

from sleep_rl import baselines
from sleep_rl.contracts import STUDENT, TEACHER, Day
from sleep_rl.evaluate import before_night, evaluate
from sleep_rl.life import Life
from sleep_rl.night import Night


def live(life: Life) -> None:
    """Wake, consolidate, reset, evaluate: day after day; then the upper bound of training on all days at once."""
    life.crew.push(TEACHER, TEACHER)
    baselines.remember(life)
    evaluate(life, after="base", lived=0)
    for night, day in enumerate(life.task.days(), start=1):
        wake(life, day)
        before_night(life, day, night)
        consolidate(life, day, night)
        reset(life)
        evaluate(life, after=f"night {night}", lived=night)
        life.save(night)
        baselines.sft(life, day, night)
    baselines.joint(life)


def wake(life: Life, day: Day) -> None:
    """New data comes in: it stands in the context window, and level 1's own weights take it in by equation 2."""
    with life.timed("wake", day=day.name, step=len(day.documents)) as record:
        record |= life.crew.learn.wake([life.texts.document(d) for d in day.documents])


def consolidate(life: Life, day: Day, night: int) -> None:
    """Knowledge Seeding from the context window into level 1: the teacher has the documents, the student has not."""
    learn, started = life.crew.learn, time.monotonic()
    learn.open_night(1)  # (a) compute: prospective weights, not applied; and one more expert unlocked
    life.crew.push(TEACHER, TEACHER)
    life.crew.push(STUDENT, STUDENT)
    data = Night(life, day, night)
    data.write()  # D ~ T(.|document), and T(.) for self-replay
    for steps in data.rounds():  # (b) consolidate: minimise L_KS over the new expert
        data.imitate(len(steps))  # y ~ S(.|x) without the document, and r(y)
        for step in steps:
            data.log(step, learn.seed_step(data.batch(), step, life.config.sleep.steps))
        life.crew.push(STUDENT, STUDENT)
    learn.close_night(True)  # (c) update: apply the prospective weights, keep the new expert
    life.crew.push(TEACHER, TEACHER)
    data.close(time.monotonic() - started)


def reset(life: Life) -> None:
    """Synaptic pruning of the sender: the documents of the day leave the context window and every cache of it."""
    if life.config.sleep.reset:
        life.crew.forget()
