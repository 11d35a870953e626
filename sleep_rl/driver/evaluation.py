"""The retention matrix: one row after each night, one column per day and one for what the base
model knew.
"""

from __future__ import annotations

import random
from statistics import fmean

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Day, Document, Question, Request
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


@stage("evaluate/{after}/{method}", switch="the number of days")
def evaluate(
    run: RunContext, *, after: str, lived: int, method: str = "sleep", weights: str = TEACHER
) -> dict[str, float]:
    """Evaluate closed book, greedily: the known, the first `lived` days, and the newest day's
    deeper questions.

    `after`: what was done last, for the journal; `weights`: the state that answers. Journals the
    accuracies and returns the row of the retention matrix: accuracy of the known and of each day.
    """
    limit = run.config.evaluate.questions
    days = run.task.days()[:lived]
    columns = {"known": subset(run.task.known(), limit)}
    columns |= {day.name: subset(day.questions, limit) for day in days}
    deeper = {}
    if days:
        deeper = {form: subset(q, limit) for form, q in forms(run, days[-1]).items()}
    total = sum(map(len, (columns | deeper).values()))
    with (
        run.console.phase(f"{after}: {method} asked closed book", total=total) as tick,
        run.timed("evaluate", after=after, method=method) as record,
    ):
        scores = grade_columns(run, columns | deeper, weights, {})
        tick(total)
        row = {column: fmean(scores[column]) for column in columns if scores[column]}
        record.update(
            row=row,
            open_book=None,
            n={column: len(values) for column, values in scores.items()},
            forms={form: fmean(scores[form]) for form in deeper if scores[form]},
        )
    if method == "sleep" and days:
        log_examples(run, "after", days[-1], weights)
    return row


def forms(run: RunContext, day: Day) -> dict[str, tuple[Question, ...]]:
    """Return form -> questions about a day that its documents do not answer as they stand; none
    where a task has no such.
    """
    return run.task.deeper(day) if isinstance(run.task, Dreamer) else {}


@stage("open_book/{night}", switch="the number of days")
def ask_before_night(run: RunContext, day: Day, night: int) -> None:
    """Evaluate the day open book, its documents in context: what the coming night can reach. Also
    journal a few closed-book answers.
    """
    log_examples(run, "before", day, TEACHER)
    if not run.config.evaluate.open_book:
        return
    columns = {day.name: subset(day.questions, run.config.evaluate.questions)}
    total = len(columns[day.name])
    with (
        run.console.phase(f"day {night}: asked open book", total=total) as tick,
        run.timed("evaluate", after=f"day {night}", method="sleep") as record,
    ):
        scores = grade_columns(run, columns, TEACHER, {d.id: d for d in day.documents})
        tick(total)
        record.update(
            row={},
            open_book={column: fmean(values) for column, values in scores.items() if values},
            n={column: len(values) for column, values in scores.items()},
        )


def grade_columns(
    run: RunContext,
    columns: dict[str, list[Question]],
    weights: str,
    documents: dict[str, Document],
) -> dict[str, list[float]]:
    """Return the grades of each column. A failed request counts in no accuracy, only among the
    failures.

    `documents`: id -> document in context when a question about it is asked.
    """
    asked = [(column, question) for column, questions in columns.items() for question in questions]
    scores: dict[str, list[float]] = {column: [] for column in columns}
    answers = answer(run, [question for _, question in asked], weights, documents)
    failed = []
    for (column, question), text in zip(asked, answers, strict=True):
        if isinstance(text, Failure):
            continue  # counted where it was sampled
        grade = run.task.grade(question, text)
        if isinstance(grade, Failure):
            failed.append(grade)
        else:
            scores[column].append(grade)
    run.count_failures("grade", failed)
    return scores


def answer(
    run: RunContext, questions: list[Question], weights: str, documents: dict[str, Document]
) -> list[str | Failure]:
    """Return greedy answers, in order; a failed request is a Failure."""
    codec = run.codec
    requests = [
        Request(codec.question(q), codec.context(documents.get(q.document))) for q in questions
    ]
    samples = run.sample(requests, weights, run.task.max_answer_tokens, 0.0)
    return [s if isinstance(s, Failure) else codec.text(s.completion_T) for s in samples]


def subset(questions: tuple[Question, ...], limit: int | None) -> list[Question]:
    """Return all questions, or `limit` of them, always the same ones."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return random.Random("evaluate").sample(list(questions), limit)


def log_examples(run: RunContext, when: str, day: Day, weights: str) -> None:
    """Journal closed-book answers to a day's first questions, for the report. `when`: before or
    after its night.
    """
    questions = list(day.questions[: run.config.evaluate.examples])
    for question, text in zip(questions, answer(run, questions, weights, {}), strict=True):
        if isinstance(text, Failure):
            continue
        grade = run.task.grade(question, text)
        if isinstance(grade, Failure):
            continue
        run.journal.log(
            "completion",
            when=when,
            day=day.name,
            question=question.id,
            prompt=question.prompt,
            answer=question.answer,
            completion=text,
            score=grade,
        )
