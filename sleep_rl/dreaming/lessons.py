"""Lessons of dreams: the texts to train on, and their form as sequences of D."""

from __future__ import annotations

import math
from dataclasses import replace

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import DreamTask, Lesson, TrainingText
from sleep_rl.night.sequences import Origin, TeacherSequence
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec


def tasks_by_id(run: RunContext, night: int) -> dict[str, DreamTask]:
    """Return id -> task for the tasks of all days up to a night."""
    days = run.task.days()[:night]
    return {task.id: task for day in days for task in run.task.dream_tasks(day)}


def lesson_of(run: RunContext, task: DreamTask, text: str) -> Lesson | Failure:
    """Return the lesson of a dream, without texts longer than the critics' max_model_len.

    A Failure if the dream has no lesson, or none of its texts fits.
    """
    lesson = run.task.lesson(task, text)
    if isinstance(lesson, Failure):
        return lesson
    engine = run.config.critic_engine
    limit = engine.get("max_model_len") or math.inf
    fitting = tuple(
        text for text in lesson.texts if sum(map(len, run.codec.baseline(text))) <= limit
    )
    if not fitting:
        return Failure(f"no text fits into max_model_len = {limit}", "dream")
    return replace(lesson, texts=fitting)


def lesson_sequence(codec: PromptCodec, text: TrainingText) -> TeacherSequence:
    """Return a text of a lesson as a sequence of D whose target is the text itself.

    If its prompt begins with the opener and ends with the marker, the prompt can be rehearsed in
    later nights like a generated one.
    """
    prompt, completion = codec.baseline(text)
    start = codec.bare
    question = prompt[len(start) :]
    if prompt[: len(start)] == start and codec.x_length(question) == len(question):
        return TeacherSequence(Origin.DREAM, start, start, question + completion, len(question))
    return TeacherSequence(Origin.DREAM, prompt, prompt, completion)
