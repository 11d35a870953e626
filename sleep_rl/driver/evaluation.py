"""The retention matrix: one row after each night, one column per day and one for what the base
model knew.
"""

from __future__ import annotations

import random
from statistics import fmean as mean

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Day, Question, Request
from sleep_rl.contracts.roles import Dreamer
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage


@stage("evaluate/{after}/{method}", switch="the number of days")
def evaluate(
    run: RunContext, *, after: str, lived: int, method: str = "sleep", weights: str = TEACHER
) -> dict[str, float]:
    """Asks about the known and the first `lived` days, greedily and without documents, and the
    newest day's deeper questions; journals the accuracies and returns the row of the known and the
    days.
    """
    limit, days = run.config.evaluate.questions, run.task.days()[:lived]
    columns = {"known": some(run.task.known(), limit)} | {
        day.name: some(day.questions, limit) for day in days
    }
    deeper = {f: some(q, limit) for f, q in forms(run, days[-1]).items()} if days else {}
    total = sum(map(len, (columns | deeper).values()))
    with (
        run.console.phase(f"{after}: {method} asked closed book", total=total) as tick,
        run.timed("evaluate", after=after, method=method) as record,
    ):
        scores = ask(run, columns | deeper, weights, {})
        tick(total)
        row = {c: mean(scores[c]) for c in columns if scores[c]}
        record.update(
            row=row,
            open_book=None,
            n={c: len(v) for c, v in scores.items()},
            forms={f: mean(scores[f]) for f in deeper if scores[f]},
        )
    if method == "sleep" and days:
        keep_completions(run, "after", days[-1], weights)
    return row


def forms(run: RunContext, day: Day) -> dict[str, tuple[Question, ...]]:
    """Form -> questions about a day that its documents do not answer as they stand; none where a
    task has no such.
    """
    return run.task.deeper(day) if isinstance(run.task, Dreamer) else {}


@stage("open_book/{night}", switch="the number of days")
def ask_before_night(run: RunContext, day: Day, night: int) -> None:
    """What the coming night can reach: the day's questions with their documents in context; and a
    few without.
    """
    keep_completions(run, "before", day, TEACHER)
    if not run.config.evaluate.open_book:
        return
    questions = {day.name: some(day.questions, run.config.evaluate.questions)}
    total = len(questions[day.name])
    with (
        run.console.phase(f"day {night}: asked open book", total=total) as tick,
        run.timed("evaluate", after=f"day {night}", method="sleep") as record,
    ):
        row = ask(run, questions, TEACHER, {d.id: d for d in day.documents})
        tick(total)
        record.update(
            row={},
            open_book={c: mean(v) for c, v in row.items() if v},
            n={c: len(v) for c, v in row.items()},
        )


def ask(
    run: RunContext, columns: dict[str, list[Question]], weights: str, documents: dict
) -> dict[str, list[float]]:
    """Grades per column; a failed request counts in no accuracy, only among the failures."""
    asked = [(column, question) for column, questions in columns.items() for question in questions]
    scores: dict[str, list[float]] = {column: [] for column in columns}
    answers = answer(run, [question for _, question in asked], weights, documents)
    grades = [
        text if isinstance(text, Failure) else run.task.grade(question, text)
        for (_, question), text in zip(asked, answers, strict=True)
    ]
    run.count_failures(
        "grade", [g for text, g in zip(answers, grades) if not isinstance(text, Failure)]
    )
    for (column, _), grade in zip(asked, grades, strict=True):
        if not isinstance(grade, Failure):
            scores[column].append(grade)
    return scores


def answer(
    run: RunContext, questions: list[Question], weights: str, documents: dict
) -> list[str | Failure]:
    """Greedy answers, in order; a failed request stays a Failure and counts in no accuracy."""
    texts = run.codec
    requests = [
        Request(texts.question(q), texts.context(documents.get(q.document))) for q in questions
    ]
    samples = run.sample(requests, weights, run.task.max_answer_tokens, 0.0)
    return [s if isinstance(s, Failure) else texts.text(s.completion_T) for s in samples]


def some(questions: tuple[Question, ...], limit: int | None) -> list[Question]:
    """All questions, or `limit` of them, always the same ones."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return random.Random("evaluate").sample(list(questions), limit)


def keep_completions(run: RunContext, when: str, day: Day, weights: str) -> None:
    """Journals the answers to a day's first questions, without documents, for the report: before
    and after its night.
    """
    questions = list(day.questions[: run.config.evaluate.examples])
    for question, text in zip(questions, answer(run, questions, weights, {}), strict=True):
        grade = text if isinstance(text, Failure) else run.task.grade(question, text)
        if not isinstance(grade, Failure):
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
