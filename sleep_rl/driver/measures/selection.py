"""Selection of the questions that are asked: a column per day and one for the known, and two halves
where evaluate.max_drop needs questions of its own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import TypeVar

from sleep_rl.contracts.records import UNANSWERABLE, Day, Question
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.session.context import RunContext

T = TypeVar("T")


def subset(items: Iterable[T], limit: int | None, seed: str = "evaluate") -> list[T]:
    """Return all items, e.g. questions, or a random subset of `limit`, fixed by `seed`."""
    chosen = list(items)
    if limit is None or len(chosen) <= limit:
        return chosen
    return random.Random(seed).sample(chosen, limit)


def reported(run: RunContext, questions: Iterable[Question]) -> list[Question]:
    """Return the questions that tables report: the answerable ones, without the held-out half
    where there is one; evaluate.questions of them.
    """
    answerable = [question for question in questions if question.kind not in UNANSWERABLE]
    if run.config.evaluate.max_drop is not None:
        answerable = [question for question in answerable if not is_held_out(question)]
    return subset(answerable, run.config.evaluate.questions)


def held_out_questions(run: RunContext, questions: Iterable[Question]) -> list[Question]:
    """Return the half that only evaluate.max_drop looks at; empty without it."""
    if run.config.evaluate.max_drop is None:
        return []
    answerable = [q for q in questions if q.kind not in UNANSWERABLE and is_held_out(q)]
    return subset(answerable, run.config.evaluate.questions)


def unanswerable(run: RunContext, days: Iterable[Day]) -> list[Question]:
    """Return the days' questions that no document answers, evaluate.questions of each kind."""
    asked = [q for day in days for q in day.questions]
    limit = run.config.evaluate.questions
    return [q for kind in UNANSWERABLE for q in subset((q for q in asked if q.kind == kind), limit)]


def is_held_out(question: Question) -> bool:
    """Return whether a question is in the held-out half: fixed by the digest of its id."""
    return hashlib.blake2b(question.id.encode(), digest_size=1).digest()[0] % 2 == 1


def deeper_questions(run: RunContext, day: Day) -> dict[str, tuple[Question, ...]]:
    """Return kind -> questions about a day that its documents do not answer literally; empty for a
    task without them.
    """
    return run.task.deeper(day) if isinstance(run.task, Dreamer) else {}
