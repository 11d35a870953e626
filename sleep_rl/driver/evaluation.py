"""Evaluation: rows of the retention matrix, with a column per day and one for the known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleep_rl.config.evaluation import GOLD
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT, TEACHER, Day
from sleep_rl.driver.measures.answers import (
    Result,
    answer,
    as_the_base,
    ask,
    cost,
    means_of,
    old_answers,
    requests_of,
    summarise,
)
from sleep_rl.driver.measures.contexts import ask_base, log_contexts
from sleep_rl.driver.measures.drift import drift
from sleep_rl.driver.measures.probes import probe
from sleep_rl.driver.measures.selection import (
    deeper_questions,
    held_out_questions,
    reported,
    unanswerable,
)
from sleep_rl.journal.retention import BASE, KNOWN
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

# answers per day, before and after its night, that the report shows: they fit on a screen
EXAMPLES = 6


@stage("evaluate/{after}/{method}", switch=Config.days_key)
def evaluate(
    run: RunContext,
    *,
    after: str,
    lived: int,
    method: str = "sleep",
    weights: str = TEACHER,
    answered: Sequence[dict[str, list]] = (),
) -> dict[str, float]:
    """Evaluate closed book with greedy decoding: the known, the first `lived` days, and the deeper
    questions of the newest of these days.

    `after`: label of the evaluation, e.g. "night 1"; `weights`: name of the state that answers;
    `answered`: what `ask_before_night` returned for each of these days, of the sleeping model.
    Journals the row of the retention matrix, and in natural language likelihoods. Returns column ->
    accuracy for the decisions of the run: of the held-out half of the questions with
    evaluate.max_drop, else the row.
    """
    days = run.task.days()[:lived]
    natural = run.codec.natural
    if natural and method == "sleep" and days and weights != CHECKPOINT:
        log_contexts(run, after, days, weights, answered)
        log_old_answers(run, "after", days[-1], lived, weights)
    asked = {KNOWN: run.task.known(), **{day.name: day.questions for day in days}}
    columns = {column: reported(run, questions) for column, questions in asked.items()}
    newest = deeper_questions(run, days[-1]) if days else {}
    deeper = {kind: reported(run, questions) for kind, questions in newest.items()}
    held_out = {column: held_out_questions(run, questions) for column, questions in asked.items()}
    parts = (columns, deeper, held_out)
    total = sum(len(questions) for part in parts for questions in part.values())
    with (
        run.console.phase(f"{after}: {method} evaluated closed book", total=total) as tick,
        run.timed("evaluate", after=after, method=method) as record,
    ):
        results, seconds = ask(run, columns | deeper, weights, likelihood=natural)
        scores = means_of(results)
        record.update(summarise(results, columns), open_book=None)
        record["deeper"] = {kind: scores[kind] for kind in deeper if kind in scores}
        if natural:
            record.update(cost(results, seconds))
            fields = as_the_base(run, unanswerable(run, days), weights)
            given = record.get("old_answers", {}) | fields.pop("old_answers", {})
            record.update(fields, old_answers=given)
        decisive = record["row"]
        if run.config.evaluate.max_drop is not None:
            decisive = means_of(ask(run, held_out, weights)[0])
            record["held_out_row"] = decisive
        record.update(_drift_and_probes(run, after, method, weights))
        tick(total)
    if method == "sleep" and days:
        log_examples(run, "after", days[-1], weights)
    return decisive


def _drift_and_probes(run: RunContext, after: str, method: str, weights: str) -> dict[str, Any]:
    """Return fields of a journal record: probes, and drift (of the sleeping model with alarm)."""
    fields: dict[str, Any] = {}
    if run.config.evaluate.probes:
        fields["probes"], fields["probes_n"] = probe(run, weights)
    fields["drift"] = None if after == BASE else drift(run, weights)
    limit = run.config.evaluate.max_drift
    if method == "sleep" and limit is not None and fields["drift"] is not None:
        fields["max_drift"] = limit
        fields["drift_alarm"] = fields["drift"] > limit
    return fields


@stage("open_book/{night}", switch=Config.days_key)
def ask_before_night(run: RunContext, day: Day, night: int) -> dict[str, list]:
    """Evaluate the day open book, with its documents in context: an upper bound for its night.

    In natural language the untouched base is asked, also closed book; what `ask_base` says is
    returned. Also journals closed-book answers, and old answers that are given, for the report.
    """
    log_examples(run, "before", day, TEACHER)
    log_old_answers(run, "before", day, night, TEACHER)
    if run.codec.natural:
        answers = ask_base(run, day, night)
        if GOLD in answers:
            results = [Result(*fields) for fields in answers[GOLD][1].values()]
            _log_open_book(run, day, night, results)
        return answers
    if GOLD in run.config.evaluate.contexts:
        documents = {document.id: document for document in day.documents}
        columns = {day.name: reported(run, day.questions)}
        total = len(columns[day.name])
        with run.console.phase(f"day {night}: evaluated open book", total=total) as tick:
            results, _ = ask(run, columns, TEACHER, lambda q: documents.get(q.document))
            tick(total)
        _log_open_book(run, day, night, results)
    return {}


def _log_open_book(run: RunContext, day: Day, night: int, results: list[Result]) -> None:
    fields = summarise(results, [day.name])
    run.journal.log(
        "evaluate",
        after=f"day {night}",
        method="sleep",
        row={},
        open_book=fields["row"],
        n=fields["n"],
    )


def log_old_answers(run: RunContext, when: str, day: Day, night: int, weights: str) -> None:
    """Journal which answers of changed and deleted documents are given, in natural language.

    `when`: "before" or "after" the day's night.
    """
    fields = old_answers(run, day, weights) if run.codec.natural else {}
    if fields:
        run.journal.log("old_answers", day=day.name, night=night, when=when, **fields)


def log_examples(run: RunContext, when: str, day: Day, weights: str) -> None:
    """Journal closed-book answers to the first questions of a day, for the report.

    `when`: "before" or "after" its night.
    """
    questions = reported(run, day.questions)[:EXAMPLES]
    texts = answer(run, requests_of(run, questions), weights)
    for question, text in zip(questions, texts, strict=True):
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
