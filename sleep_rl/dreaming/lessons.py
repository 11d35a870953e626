"""What a dream teaches: texts to train on, as rows of a copy and as sequences of D."""

from __future__ import annotations

import math
from dataclasses import replace

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import DreamTask, Lesson, TrainingText
from sleep_rl.night.sequences import Origin, TeacherSequence
from sleep_rl.session.context import RunContext
from sleep_rl.session.prompts import PromptCodec


def tasks_by_id(run: RunContext, night: int) -> dict[str, DreamTask]:
    """Return the tasks of all days up to a night."""
    days = run.task.days()[:night]
    return {task.id: task for day in days for task in run.task.dream_tasks(day)}


def lesson_of(run: RunContext, task: DreamTask, text: str) -> Lesson | Failure:
    """Return what a dream teaches, without texts that do not fit into the engines."""
    lesson = run.task.lesson(task, text)
    if isinstance(lesson, Failure):
        return lesson
    engine = run.config.critic_engine
    limit = engine.get("max_model_len") or math.inf
    fitting = tuple(
        text for text in lesson.texts if sum(map(len, run.codec.baseline(text))) <= limit
    )
    if not fitting:
        return Failure(f"none of its texts fits into max_model_len = {limit}", "dream")
    return replace(lesson, texts=fitting)


def lesson_sequence(codec: PromptCodec, text: TrainingText) -> TeacherSequence:
    """Return a lesson's text as a sequence of D whose target is the text itself.

    Where it begins with the opener and holds a marker, its prompt is rehearsed in later nights like
    one that the teacher wrote.
    """
    prompt, completion = codec.baseline(text)
    start = codec.context(None) + codec.opener
    asked = prompt[len(start) :]
    if prompt[: len(start)] == start and codec.x_length(asked) == len(asked):
        return TeacherSequence(Origin.DREAM, start, asked + completion)
    return TeacherSequence(Origin.DREAM, prompt, completion)
