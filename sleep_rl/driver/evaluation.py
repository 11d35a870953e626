"""The retention matrix: one row after each night, one column per day and one for what the base
model knew.
"""

from __future__ import annotations

import random
from statistics import fmean as mean

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Day, Question, Request
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.session.context import Life
from sleep_rl.session.resumable import stage


@stage
def evaluate(
    life: Life, *, after: str, lived: int, method: str = "sleep", weights: str = TEACHER
) -> dict[str, float]:
    """Asks about the known and the first `lived` days, greedily and without documents, and the
    newest day's deeper questions; journals the accuracies and returns the row of the known and the
    days.
    """
    limit, days = life.config.evaluate.questions, life.task.days()[:lived]
    columns = {"known": some(life.task.known(), limit)} | {
        day.name: some(day.questions, limit) for day in days
    }
    deeper = {f: some(q, limit) for f, q in forms(life, days[-1]).items()} if days else {}
    total = sum(map(len, (columns | deeper).values()))
    with (
        life.console.phase(f"{after}: {method} asked closed book", total=total) as tick,
        life.timed("evaluate", after=after, method=method) as record,
    ):
        scores = ask(life, columns | deeper, weights, {})
        tick(total)
        row = {c: mean(scores[c]) for c in columns if scores[c]}
        record.update(
            row=row,
            open_book=None,
            n={c: len(v) for c, v in scores.items()},
            forms={f: mean(scores[f]) for f in deeper if scores[f]},
        )
    if method == "sleep" and days:
        keep_completions(life, "after", days[-1], weights)
    return row


def forms(life: Life, day: Day) -> dict[str, tuple[Question, ...]]:
    """Form -> questions about a day that its documents do not answer as they stand; none where a
    task has no such.
    """
    return life.task.deeper(day) if isinstance(life.task, Dreamer) else {}


@stage
def before_night(life: Life, day: Day, night: int) -> None:
    """What the coming night can reach: the day's questions with their documents in context; and a
    few without.
    """
    keep_completions(life, "before", day, TEACHER)
    if not life.config.evaluate.open_book:
        return
    questions = {day.name: some(day.questions, life.config.evaluate.questions)}
    total = len(questions[day.name])
    with (
        life.console.phase(f"day {night}: asked open book", total=total) as tick,
        life.timed("evaluate", after=f"day {night}", method="sleep") as record,
    ):
        row = ask(life, questions, TEACHER, {d.id: d for d in day.documents})
        tick(total)
        record.update(
            row={},
            open_book={c: mean(v) for c, v in row.items() if v},
            n={c: len(v) for c, v in row.items()},
        )


def ask(
    life: Life, columns: dict[str, list[Question]], weights: str, documents: dict
) -> dict[str, list[float]]:
    """Grades per column; a failed request counts in no accuracy, only among the failures."""
    asked = [(column, question) for column, questions in columns.items() for question in questions]
    scores: dict[str, list[float]] = {column: [] for column in columns}
    answers = answer(life, [question for _, question in asked], weights, documents)
    grades = [
        text if isinstance(text, Failure) else life.task.grade(question, text)
        for (_, question), text in zip(asked, answers, strict=True)
    ]
    life.count_failures(
        "grade", [g for text, g in zip(answers, grades) if not isinstance(text, Failure)]
    )
    for (column, _), grade in zip(asked, grades, strict=True):
        if not isinstance(grade, Failure):
            scores[column].append(grade)
    return scores


def answer(
    life: Life, questions: list[Question], weights: str, documents: dict
) -> list[str | Failure]:
    """Greedy answers, in order; a failed request stays a Failure and counts in no accuracy."""
    texts = life.texts
    requests = [
        Request(texts.question(q), texts.context(documents.get(q.document))) for q in questions
    ]
    samples = life.sample(requests, weights, life.task.max_answer_tokens, 0.0)
    return [s if isinstance(s, Failure) else texts.text(s.completion_T) for s in samples]


def some(questions: tuple[Question, ...], limit: int | None) -> list[Question]:
    """All questions, or `limit` of them, always the same ones."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return random.Random("evaluate").sample(list(questions), limit)


def keep_completions(life: Life, when: str, day: Day, weights: str) -> None:
    """Journals the answers to a day's first questions, without documents, for the report: before
    and after its night.
    """
    questions = list(day.questions[: life.config.evaluate.completions])
    for question, text in zip(questions, answer(life, questions, weights, {}), strict=True):
        grade = text if isinstance(text, Failure) else life.task.grade(question, text)
        if not isinstance(grade, Failure):
            life.journal.log(
                "completion",
                when=when,
                day=day.name,
                question=question.id,
                prompt=question.prompt,
                answer=question.answer,
                completion=text,
                score=grade,
            )
