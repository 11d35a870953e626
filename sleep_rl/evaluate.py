"""The retention matrix: one row after each night, one column per day and one for what the base model knew."""

from __future__ import annotations

import random

from sleep_rl.contracts import TEACHER, Day, Failure, Question, Request
from sleep_rl.life import Life


def evaluate(life: Life, *, after: str, lived: int, method: str = "sleep", weights: str = TEACHER,
             open_book: Day | None = None) -> dict[str, float]:
    """Asks about the known and the first `lived` days, greedily and without documents, and journals the accuracies.

    With `open_book`, asks about that day only, with each question's document in context: what the night can reach.
    """
    days = [open_book] if open_book else list(life.task.days()[:lived])
    if open_book and not life.config.evaluate.open_book:
        return {}
    columns = {} if open_book else {"known": some(life.task.known(), life.config.evaluate.questions)}
    columns |= {day.name: some(day.questions, life.config.evaluate.questions) for day in days}
    documents = {d.id: d for d in open_book.documents} if open_book else {}
    asked = [(column, q) for column, questions in columns.items() for q in questions]
    with life.console.phase(f"{after}: {method} asked {'open book' if open_book else 'closed book'}", total=None), \
            life.timed("evaluate", after=after, method=method) as record:
        answers = answer(life, [q for _, q in asked], weights, documents)
        scores: dict[str, list[float]] = {column: [] for column in columns}
        for (column, question), text in zip(asked, answers, strict=True):
            if not isinstance(text, Failure):
                scores[column].append(life.task.grade(question, text))
        row = {c: sum(v) / len(v) for c, v in scores.items() if v}
        kept = {"row": {}, "open_book": row} if open_book else {"row": row, "open_book": None}
        record.update(kept, n={c: len(v) for c, v in scores.items()})
    if method == "sleep":
        keep_completions(life, "before" if open_book else "after", days[-1:] if days else [], asked, answers)
    return row


def answer(life: Life, questions: list[Question], weights: str, documents: dict) -> list[str | Failure]:
    """Greedy answers, in order; a failed request stays a Failure and counts in no accuracy."""
    texts = life.texts
    requests = [Request(texts.question(q), texts.context(documents.get(q.document))) for q in questions]
    samples = life.sample(requests, weights, life.task.max_answer_tokens, 0.0)
    return [s if isinstance(s, Failure) else texts.text(s.completion_T) for s in samples]


def some(questions: tuple[Question, ...], limit: int | None) -> list[Question]:
    """All questions, or `limit` of them, always the same ones."""
    if limit is None or len(questions) <= limit:
        return list(questions)
    return random.Random("evaluate").sample(list(questions), limit)


def keep_completions(life: Life, when: str, days: list[Day], asked: list, answers: list) -> None:
    """Journals a few answers about the newest day for the report; "before" means with the document in context."""
    for day in days:
        mine = [(q, a) for (column, q), a in zip(asked, answers, strict=True) if column == day.name]
        for question, text in mine[: life.config.evaluate.completions]:
            if not isinstance(text, Failure):
                life.journal.log("completion", when=when, day=day.name, question=question.id, prompt=question.prompt,
                                 answer=question.answer, completion=text, score=life.task.grade(question, text))
