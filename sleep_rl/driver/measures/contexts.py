"""Evaluation with documents in context: the gold document, retrieved ones, all that fit, and none;
and the sleeping model with retrieved ones.

The untouched base answers all of them but the last. Closed book and with the gold document its
answers never change, so that they are asked once, before a day's night, and kept in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Protocol, runtime_checkable

from sleep_rl.config.evaluation import ALL, CLOSED, GOLD, MEMORY_RETRIEVAL, RETRIEVAL
from sleep_rl.contracts.records import CHECKPOINT, Day, Document, Question
from sleep_rl.driver.measures.answers import ContextOf, Result, ask, cost, no_document, summarise
from sleep_rl.driver.measures.selection import reported
from sleep_rl.session.context import RunContext
from sleep_rl.text.retrieval import Retriever

SPARE_TOKENS = 8  # where pieces meet, tokens may differ from those of each piece


@runtime_checkable
class Library(Protocol):
    """Members that a Task has in addition, where a document comes in pieces or in versions."""

    def current(self, days: Sequence[Day], *, whole: bool = False) -> tuple[Document, ...]:
        """Return the pieces of every document as it is after these days, newest day first; with
        `whole` as `whole` returns them.
        """

    def whole(self, document: str) -> tuple[Document, ...]:
        """Return the pieces of the document whose first piece has this id; joined, its text."""


def ask_base(run: RunContext, day: Day, night: int) -> dict[str, list]:
    """Ask the untouched base about a day closed book and with the gold document.

    Returns context -> [seconds of all answers, question -> fields of its Result] as plain data.
    """
    columns = {day.name: reported(run, day.questions)}
    ways: dict[str, ContextOf] = {CLOSED: no_document, GOLD: lambda q: _gold(run, day, q)}
    plain = {}
    for name in (CLOSED, GOLD):
        if name not in run.config.evaluate.contexts:
            continue
        title = f"day {night}: untouched base, {name}"
        with run.console.phase(title, total=len(columns[day.name])) as tick:
            results, seconds = _ask(run, columns, CHECKPOINT, ways[name], likelihood=True)
            tick(len(results))
        keys = map(_key, columns[day.name])
        plain[name] = [seconds, dict(zip(keys, map(astuple, results), strict=True))]
    return plain


def log_contexts(
    run: RunContext,
    after: str,
    days: Sequence[Day],
    weights: str,
    answered: Sequence[dict[str, list]],
) -> None:
    """Journal a record per context of evaluate.contexts, over the questions of `days`.

    `weights`: the sleeping model's state; `answered`: what `ask_base` returned for each day.
    """
    chosen = run.config.evaluate.contexts
    columns = {day.name: reported(run, day.questions) for day in days}
    for name in (CLOSED, GOLD):
        if name in chosen:
            _log_saved(run, after, name, columns, answered)
    if not {RETRIEVAL, ALL, MEMORY_RETRIEVAL} & set(chosen) or not any(columns.values()):
        return
    documents = _current(run, days)
    retrieved = _retrieved(run, documents)
    everything = fitting(run, _current(run, days, whole=True), _room(run, columns))
    ways: list[tuple[str, str, ContextOf]] = [
        (RETRIEVAL, CHECKPOINT, retrieved),
        (ALL, CHECKPOINT, lambda question: everything),
        (MEMORY_RETRIEVAL, weights, retrieved),
    ]
    for name, state, context_of in ways:
        if name not in chosen:
            continue
        total = sum(map(len, columns.values()))
        with run.console.phase(f"{after}: evaluated with {name}", total=total) as tick:
            results, seconds = _ask(run, columns, state, context_of)
            tick(total)
        _log(run, after, name, results, seconds, list(columns))


def fitting(
    run: RunContext, documents: Sequence[Document], room: int, separator: str = "\n\n"
) -> Document | None:
    """Return the leading documents as one, as far as they fit into `room` tokens; None where not
    one does.
    """
    texts = []
    for document in documents:
        room -= len(run.codec.ids(document.text + separator))
        if room < 0:
            break
        texts.append(document.text.strip())
    return Document("", separator.join(texts)) if texts else None


def _ask(
    run: RunContext,
    columns: dict[str, list[Question]],
    weights: str,
    context_of: ContextOf,
    likelihood: bool = False,
) -> tuple[list[Result], float]:
    """Ask with empty caches, so that the times of two contexts can be compared."""
    run.crew.drop_caches()
    return ask(run, columns, weights, context_of, likelihood)


def _gold(run: RunContext, day: Day, question: Question) -> Document | None:
    """Return the document that answers a question, as far as it fits."""
    named = [document for document in day.documents if document.id == question.document]
    if named and isinstance(run.task, Library):
        named = list(run.task.whole(question.document))
    return fitting(run, named, _room(run, {day.name: [question]}), "\n")


def _current(run: RunContext, days: Sequence[Day], *, whole: bool = False) -> tuple[Document, ...]:
    if isinstance(run.task, Library):
        return run.task.current(days, whole=whole)
    return tuple(document for day in reversed(days) for document in day.documents)


def _retrieved(run: RunContext, documents: Sequence[Document]) -> ContextOf:
    retriever = Retriever(documents)

    def context_of(question: Question) -> Document | None:
        room = _room(run, {"": [question]})
        return fitting(run, retriever.best(question.prompt), room)

    return context_of


def _room(run: RunContext, columns: dict[str, list[Question]]) -> int:
    """Return the tokens that documents in front of any of these questions may have."""
    codec = run.codec
    longest = max(len(codec.question(q)) for questions in columns.values() for q in questions)
    around = len(codec.context(Document("", ".")))
    return run.context_tokens - around - longest - run.task.max_answer_tokens - SPARE_TOKENS


def _key(question: Question) -> str:
    """Return what an answer of the untouched base is kept under; a question's day may change."""
    return f"{question.prompt}\n{question.answer}"


def _log_saved(
    run: RunContext,
    after: str,
    name: str,
    columns: dict[str, list[Question]],
    answered: Sequence[dict[str, list]],
) -> None:
    """Journal what `ask_base` returned for each day, of the questions that are asked now."""
    saved: dict[str, list] = {}
    seconds: dict[str, float] = {}
    for of_day in answered:
        took, results = of_day.get(name, (0.0, {}))
        saved |= results
        seconds |= dict.fromkeys(results, took / max(len(results), 1))
    kept = [
        (replace(Result(*saved[key]), column=column), seconds[key])
        for column, questions in columns.items()
        for key in map(_key, questions)
        if key in saved
    ]
    if kept:
        results = [result for result, _ in kept]
        _log(run, after, name, results, sum(took for _, took in kept), list(columns))


def _log(
    run: RunContext,
    after: str,
    name: str,
    results: list[Result],
    seconds: float,
    columns: list[str],
) -> None:
    fields = summarise(results, columns) | cost(results, seconds)
    run.journal.log("context", after=after, context=name, **fields)
