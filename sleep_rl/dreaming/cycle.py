"""Dreaming, the second stage of sleep (paper.md section 4): the model writes about its tasks, tries
what it wrote on copies of itself, lets its dreaming policy follow what helped, and learns that.

Every step is a stage: one that is cut off is done again with the same result, from the plain data
that earlier ones returned.
"""

from __future__ import annotations

import random

from sleep_rl.contracts.records import TEACHER, DreamTask
from sleep_rl.dreaming.dream import Dream, from_plain
from sleep_rl.dreaming.generation import write
from sleep_rl.dreaming.lessons import lesson_of, lesson_sequence, tasks_by_id
from sleep_rl.dreaming.policy import follow
from sleep_rl.dreaming.selection import draw_tasks, select
from sleep_rl.dreaming.trials import accepted, try_out
from sleep_rl.night.consolidation import Consolidation
from sleep_rl.night.plan import plan_dreams
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


def dream(run: RunContext, night: int, row: dict[str, float], policy: bool) -> bool:
    """ReST-EM after a night: in each round write, select and try out dreams, and let the policy
    follow the rewarded ones; then the model learns them.

    `row`: accuracies as last measured, for the curriculum. `policy`: whether the dreaming policy
    has a memory of its own; returned for the next night.
    """
    options = run.config.dream
    learned: list[Dream] = []
    for number in range(1, options.rounds + 1):
        tasks = tasks_of(run, night, number, row)
        written = write(run, night, number, tasks, policy)
        selected = select(run, night, number, tasks, written)
        tried = try_out(run, night, number, tasks, selected)
        rewarded = accepted(from_plain(tried), options.accept)
        policy = follow(run, night, number, rewarded, policy)
        learned += rewarded
    if learned:
        learn(run, night, learned)
    return policy


def tasks_of(run: RunContext, night: int, number: int, row: dict[str, float]) -> list[DreamTask]:
    """Draw the round's tasks from those of all days so far (curriculum)."""
    newest = run.task.days()[night - 1].name
    rng = random.Random(f"tasks {run.config.run.seed} {night} {number}")
    tasks = list(tasks_by_id(run, night).values())
    return draw_tasks(tasks, row, run.config.dream, newest, rng)


@stage("dream/{night}/learn", switch="dream.rounds", optional=True)
def learn(run: RunContext, night: int, rewarded: list[Dream]) -> None:
    """Let the model itself learn the accepted dreams: cross entropy on their texts in one more
    expert of level 1, held to its old self by the same self-replay as in consolidation.
    """
    tasks = tasks_by_id(run, night)
    lessons = [lesson_of(run, tasks[dream.task], dream.text) for dream in rewarded]
    texts = [text for lesson in lessons for text in lesson.texts]
    sequences = list(dict.fromkeys(lesson_sequence(run.codec, text) for text in texts))  # each once
    plan = plan_dreams(run.config, night)
    run.crew.learn.open_night(1)
    consolidation = Consolidation.begin(run, plan, None, sequences)
    consolidation.train()
    run.crew.learn.commit_night()
    run.crew.push(TEACHER, TEACHER)
    consolidation.finish()
