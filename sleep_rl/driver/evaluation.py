"""Evaluation: rows of the retention matrix, with a column per day and one for the known."""

from __future__ import annotations

import random
from statistics import fmean

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Day, Document, Question, Request
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

# answers per day, before and after its night, that the report shows: they fit on a screen
EXAMPLES = 6


@stage("evaluate/{after}/{method}", switch="the number of days")
def evaluate(
    run: RunContext, *, after: str, lived: int, method: str = "sleep", weights: str = TEACHER
) -> dict[str, float]:
    """Evaluate closed book with greedy decoding: the known, the first `lived` days, and the deeper
    questions of the newest of these days.

    `after`: label of the evaluation, e.g. "night 1"; `weights`: name of the state that answers.
    Journals the accuracies and returns the row of the retention matrix: column -> accuracy.
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
        run.console.phase(f"{after}: {method} evaluated closed book", total=total) as tick,
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
    """Return form -> questions about a day that its documents do not answer literally; empty for a
    task without them.
    """
    return run.task.deeper(day) if isinstance(run.task, Dreamer) else {}


@stage("open_book/{night}", switch="the number of days")
def ask_before_night(run: RunContext, day: Day, night: int) -> None:
    """Evaluate the day open book, with its documents in context: an upper bound for its night.

    Also journals closed-book answers for the report. Without evaluate.open_book only these.
    """
    log_examples(run, "before", day, TEACHER)
    if not run.config.evaluate.open_book:
        return
    columns = {day.name: subset(day.questions, run.config.evaluate.questions)}
    total = len(columns[day.name])
    with (
        run.console.phase(f"day {night}: evaluated open book", total=total) as tick,
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
    """Return column -> grades of its questions; failed requests and grades are left out and
    counted as failures.

    `documents`: id -> document that is in context for questions about it.
    """
    asked = [(column, question) for column, questions in columns.items() for question in questions]
    scores: dict[str, list[float]] = {column: [] for column in columns}
    answers = answer(run, [question for _, question in asked], weights, documents)
    failed = []
    for (column, question), text in zip(asked, answers, strict=True):
        if isinstance(text, Failure):
            continue  # counted by run.sample
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
    """Return the greedily decoded answer, or a Failure, of each question, in order."""
    codec = run.codec
    requests = [
        Request(codec.question(q), codec.context(documents.get(q.document))) for q in questions
    ]
    samples = run.sample(requests, weights, run.task.max_answer_tokens, 0.0)
    return [s if isinstance(s, Failure) else codec.text(s.completion_T) for s in samples]


def subset(questions: tuple[Question, ...], limit: int | None) -> list[Question]:
    """Return all questions, or a fixed random subset of `limit`."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return random.Random("evaluate").sample(list(questions), limit)


def log_examples(run: RunContext, when: str, day: Day, weights: str) -> None:
    """Journal closed-book answers to the first questions of a day, for the report.

    `when`: "before" or "after" its night.
    """
    questions = list(day.questions[:EXAMPLES])
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
