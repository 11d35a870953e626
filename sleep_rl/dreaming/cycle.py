"""Dreaming, the second stage of sleep (paper.md section 4): generate texts about tasks, try them
out on copies of the model, fine-tune the dreaming policy on the rewarded ones, and learn these.

Every step is a resumable stage: its result is plain data, and the same when it runs again.
"""

from __future__ import annotations

import random

from sleep_rl.contracts.records import TEACHER, DreamTask
from sleep_rl.dreaming.dream import Dream, from_plain
from sleep_rl.dreaming.generation import generate_dreams
from sleep_rl.dreaming.lessons import lesson_of, lesson_sequence, tasks_by_id
from sleep_rl.dreaming.policy import train_policy
from sleep_rl.dreaming.selection import draw_tasks, select
from sleep_rl.dreaming.trials import try_out
from sleep_rl.night.consolidation import Consolidation
from sleep_rl.night.plan import plan_dreams
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


def dream(run: RunContext, night: int, row: dict[str, float], policy: bool) -> bool:
    """Run the rounds of ReST-EM after a night: generate, select and try out dreams, train the
    policy on the accepted ones (M-step); then the model learns all accepted dreams.

    `row`: newest row of the retention matrix, for the curriculum. `policy`: whether the dreaming
    policy has a memory state of its own; returned for the next night.
    """
    options = run.config.dream
    accepted_dreams: list[Dream] = []
    for number in range(1, options.rounds + 1):
        tasks = tasks_of(run, night, number, row)
        generated = generate_dreams(run, night, number, tasks, policy)
        selected = select(run, night, number, tasks, generated)
        tried = try_out(run, night, number, tasks, selected)
        accepted = [dream for dream in from_plain(tried) if dream.reward]
        policy = train_policy(run, night, number, accepted, policy)
        accepted_dreams += accepted
    if accepted_dreams:
        learn(run, night, accepted_dreams)
    return policy


def tasks_of(run: RunContext, night: int, number: int, row: dict[str, float]) -> list[DreamTask]:
    """Draw the tasks of a round from those of all days so far, by dream.curriculum."""
    newest = run.task.days()[night - 1].name
    rng = random.Random(f"tasks {run.config.run.seed} {night} {number}")
    tasks = list(tasks_by_id(run, night).values())
    return draw_tasks(tasks, row, run.config.dream, newest, rng)


@stage("dream/{night}/learn", switch="dream.rounds", optional=True)
def learn(run: RunContext, night: int, rewarded: list[Dream]) -> None:
    """Train the model on the accepted dreams: cross entropy on their texts in a new expert of level
    1, together with self-replay as in consolidation.
    """
    tasks = tasks_by_id(run, night)
    lessons = [lesson_of(run, tasks[dream.task], dream.text) for dream in rewarded]
    texts = [text for lesson in lessons for text in lesson.texts]
    sequences = list(dict.fromkeys(lesson_sequence(run.codec, text) for text in texts))  # distinct
    plan = plan_dreams(run.config, night)
    run.crew.learn.open_night(1)
    consolidation = Consolidation.resume(run, plan) or Consolidation.begin(
        run, plan, None, sequences
    )
    consolidation.train()
    run.crew.learn.commit_night()
    run.crew.push(TEACHER, TEACHER)
    consolidation.finish()
