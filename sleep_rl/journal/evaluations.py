"""Kinds of journal records about what the model answers."""

from __future__ import annotations

from sleep_rl.journal.entry import Entry, Number, Text, kind, metric, needed, shared_fields

Scores = dict[str, float | None]
"""Column, or kind of question -> share of correct answers."""


@shared_fields
class Answers(Entry):
    """Fields of every record of what one state answers: means over the questions that are reported.

    `nll` and `choice` also have a key per kind of question, and `all days`.
    """

    kinds: Scores | None = metric("accuracy per kind of question, all days", "share correct")
    nll: Scores | None = metric("negative log-likelihood of the gold answer", "nats")
    choice: Scores | None = metric(
        "gold answer likelier than each wrong one, by character", "share"
    )
    old_answers: Scores | None = metric(
        "old answers given: corrected, and of deleted documents", "share"
    )
    n: dict[str, float] | None = metric("questions per column and kind", "count")
    prompt_tokens: Number = metric("tokens read per answer, with the context", "tokens")
    answer_seconds: Number = metric("wall-clock time per answer, all asked together", "s")


@kind("evaluate")
class Evaluation(Answers):
    """Accuracies of one method after a night; with an empty `row` open book only."""

    after: str = needed('point of the life: "base", "night 1", ...')
    method: str = needed("sleep, or the name of a baseline")
    row: Scores = needed("accuracy per column (known and every day), closed book", "share correct")
    open_book: Scores | None = metric("accuracy with the document in context", "share correct")
    deeper: Scores | None = metric(
        "accuracy per kind of deeper question about the newest day", "share correct"
    )
    held_out_row: Scores | None = metric(
        "accuracy on the half that evaluate.max_drop looks at", "share correct"
    )
    as_base: Scores | None = metric(
        "answered as the untouched base, per kind of unanswerable question", "share"
    )
    drift: Number = metric("KL(untouched base || now) on texts of the base", "nats/token")
    max_drift: Number = metric("evaluate.max_drift", "nats/token")
    drift_alarm: bool | None = metric("whether drift exceeds it")
    probes: Scores | None = metric("right answers per file of evaluate.probes", "share correct")
    probes_n: dict[str, float] | None = metric("answers per file", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("context")
class InContext(Answers):
    """Answers with something in context; of the untouched base, but for memory+retrieval."""

    after: str = needed('point of the life: "night 1", ...')
    context: str = needed("name in evaluate.contexts")
    row: Scores = needed("accuracy per day", "share correct")


@kind("old_answers")
class OldAnswers(Entry):
    """Answers of documents that a day corrects or deletes, and that are still given."""

    day: Text = metric("name of the day")
    night: int | None = metric("number of its night, from 1")
    when: str = needed("before or after the night")
    shares: Scores = needed("old answers given: corrected, and of deleted documents", "share")
    n: dict[str, float] | None = metric(
        "questions whose answer was corrected, or document deleted", "count"
    )


@kind("completion")
class Completion(Entry):
    """The answer to one question before or after a night."""

    when: str = needed("before or after the night")
    day: str = needed("name of the day")
    question: str = needed("id of the question")
    prompt: Text = metric("prompt of the question")
    answer: str = needed("correct answer")
    completion: str = needed("answer of the model")
    score: Number = metric("grade of the completion", "0 to 1")
