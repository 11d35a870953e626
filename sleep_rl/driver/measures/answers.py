"""Ask questions of one state: greedy answers with their grades and, in natural language,
likelihoods of the gold answer and of wrong ones.

Shape suffix: `_N` questions of one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT, DELETED, Day, Document, Question, Request
from sleep_rl.driver.measures.likelihood import likelihoods
from sleep_rl.driver.measures.selection import reported, unanswerable
from sleep_rl.journal.retention import ALL_DAYS, CORRECTED, KNOWN
from sleep_rl.session.context import RunContext

ContextOf = Callable[[Question], Document | None]


@dataclass(frozen=True)
class Result:
    """Measurements of one question; None where something could not be measured."""

    column: str
    kind: str
    prompt_tokens: int  # with what stands in context
    grade: float | None
    old: float | None = None  # grade against the answer of a changed or deleted document
    nll: float | None = None  # of the gold answer, nats
    choice: float | None = None  # whether the gold answer is likelier than every wrong one


def no_document(question: Question) -> None:
    """Return None: in a closed-book evaluation no document is in context."""


def requests_of(
    run: RunContext, questions_N: Iterable[Question], context_of: ContextOf = no_document
) -> list[Request]:
    """Return one request per question, behind what `context_of` returns for it."""
    codec = run.codec
    return [Request(codec.question(q), codec.context(context_of(q))) for q in questions_N]


def answer(run: RunContext, requests_N: list[Request], weights: str) -> list[str | Failure]:
    """Return the greedily decoded answer, or a Failure, of each request, in order."""
    samples = run.sample(requests_N, weights, run.task.max_answer_tokens, 0.0)
    return [s if isinstance(s, Failure) else run.codec.answer_text(s.completion_T) for s in samples]


def ask(
    run: RunContext,
    columns: dict[str, list[Question]],
    weights: str,
    context_of: ContextOf = no_document,
    likelihood: bool = False,
) -> tuple[list[Result], float]:
    """Return (a Result per question, column by column; seconds that the answers took).

    `likelihood`: also measure the likelihood of the given answers, behind the same requests.
    """
    asked = [(column, question) for column, questions in columns.items() for question in questions]
    questions = [question for _, question in asked]
    requests = requests_of(run, questions, context_of)
    began = time.monotonic()
    texts = answer(run, requests, weights)
    seconds = time.monotonic() - began
    measured = [(None, None)] * len(asked)
    if likelihood:
        measured = likelihoods(run, questions, requests, weights)
    grades = grade(run, questions, texts)
    old_grades = grade_old(run, questions, texts)
    results = [
        Result(
            column,
            question.kind,
            len(request.context_T) + len(request.prompt_T),
            grades[n],
            old_grades[n],
            *measured[n],
        )
        for n, ((column, question), request) in enumerate(zip(asked, requests, strict=True))
    ]
    return results, seconds


def grade(
    run: RunContext, questions_N: list[Question], texts_N: list[str | Failure | None]
) -> list[float | None]:
    """Return the grade of each answer; None for a failed sample (counted by run.sample), for a
    failed grade, which is counted here, and for no text.
    """
    grades: list[float | None] = []
    failed = []
    for question, text in zip(questions_N, texts_N, strict=True):
        value = run.task.grade(question, text) if isinstance(text, str) else None
        if isinstance(value, Failure):
            failed.append(value)
            value = None
        grades.append(value)
    run.count_failures("grade", failed)
    return grades


def grade_old(
    run: RunContext, questions_N: list[Question], texts_N: list[str | Failure]
) -> list[float | None]:
    """Return the grade of each answer against the one that no longer holds; None without one."""
    old = [replace(question, answer=question.old_answer) for question in questions_N]
    texts = [text if q.answer else None for q, text in zip(old, texts_N, strict=True)]
    return grade(run, old, texts)


def old_answers(run: RunContext, day: Day, weights: str) -> dict[str, Any]:
    """Return fields of a journal record on the questions about documents that a day corrects or
    deletes: the share of their old answers that is still given, by which of both; empty without
    any.
    """
    groups = {
        CORRECTED: [q for q in reported(run, day.questions) if q.old_answer],
        DELETED: [q for q in unanswerable(run, [day]) if q.old_answer],
    }
    shares = {}
    counts = {}
    for which, questions in groups.items():
        texts = answer(run, requests_of(run, questions), weights)
        graded = [grade for grade in grade_old(run, questions, texts) if grade is not None]
        if graded:
            shares[which] = fmean(graded)
            counts[which] = len(graded)
    return {"shares": shares, "n": counts} if shares else {}


def summarise(results: list[Result], columns: Iterable[str]) -> dict[str, Any]:
    """Return fields of a journal record: accuracies by column and kind, likelihoods by column, kind
    and over all days, counts. What was not measured is left out.

    `columns`: those of the retention matrix; other ones only count in `n`.
    """
    row = list(columns)
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.column, []).append(result)
    kinds: dict[str, list[Result]] = {}
    of_days = [r for r in results if r.column in row and r.column != KNOWN]
    for result in of_days:
        if result.kind:
            kinds.setdefault(result.kind, []).append(result)
    in_row = {name: groups[name] for name in row if name in groups}
    everything = in_row | kinds | {ALL_DAYS: of_days}
    fields = {
        "row": _means(in_row, "grade"),
        "kinds": _means(kinds, "grade"),
        "nll": _means(everything, "nll"),
        "choice": _means(everything, "choice"),
        "old_answers": _means({CORRECTED: of_days}, "old"),
    }
    measured = {name: value for name, value in fields.items() if value}
    counted = {name: sum(r.grade is not None for r in group) for name, group in groups.items()}
    counted |= {name: sum(r.grade is not None for r in group) for name, group in kinds.items()}
    return {"row": {}, **measured, "n": counted}


def cost(results: list[Result], seconds: float) -> dict[str, float]:
    """Return fields of a journal record: what an answer costs; empty without results.

    `seconds`: of all answers, asked together.
    """
    if not results:
        return {}
    return {
        "prompt_tokens": fmean(result.prompt_tokens for result in results),
        "answer_seconds": seconds / len(results),
    }


def means_of(results: list[Result]) -> dict[str, float]:
    """Return column -> mean grade; without the columns in which nothing was graded."""
    columns: dict[str, list[Result]] = {}
    for result in results:
        columns.setdefault(result.column, []).append(result)
    return _means(columns, "grade")


def _means(groups: dict[str, list[Result]], name: str) -> dict[str, float]:
    means = {}
    for key, results in groups.items():
        values = [getattr(r, name) for r in results if getattr(r, name) is not None]
        if values:
            means[key] = fmean(values)
    return means


def as_the_base(run: RunContext, questions_N: list[Question], weights: str) -> dict[str, Any]:
    """Return fields of a journal record on questions that no document answers: by kind the share
    that is answered with the untouched base's exact text, and the share of deleted answers given.

    Empty where nothing can be compared.
    """
    if not questions_N or weights == CHECKPOINT:
        return {}
    requests = requests_of(run, questions_N)
    texts = answer(run, requests, weights)
    same: dict[str, list[float]] = {}
    for question, text, of_base in zip(
        questions_N, texts, answer(run, requests, CHECKPOINT), strict=True
    ):
        if isinstance(text, str) and isinstance(of_base, str):
            same.setdefault(question.kind, []).append(float(text.strip() == of_base.strip()))
    old = [grade for grade in grade_old(run, questions_N, texts) if grade is not None]
    return {
        "as_base": {kind: fmean(values) for kind, values in same.items()},
        "old_answers": {DELETED: fmean(old)} if old else {},
    }
