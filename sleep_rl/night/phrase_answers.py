"""Phrases of a sentence as answers: what was asked for, without words around it."""

from __future__ import annotations

import math

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Request
from sleep_rl.night.items import Counts, Item
from sleep_rl.session.context import RunContext
from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.questions import normalised
from sleep_rl.writing.units import body_of, phrases, sentences

MOST_CHOICES = 5
"""Phrases among which the teacher chooses the answer to a question."""


def phrase_answers(codec: PromptCodec, items: list[Item]) -> list[Item]:
    """Return the answered items of kinds with phrase_answers again, with the phrase alone as the
    answer: the student learns it without the words around it. Only where the answer says it.
    """
    again = []
    for item in items:
        phrase = item.unit.fields.get("phrase", "")
        answer = codec.text(item.answer_T)
        if not _askable(item) or normalised(phrase) == normalised(answer):
            continue
        if gold_recall(phrase, answer) >= RECALL_THRESHOLD:
            again.append(_with_phrase(codec, item))
    return again


def recovered_phrases(
    run: RunContext, asked: list[Item], answered: list[Item], counts: Counts
) -> list[Item]:
    """Return the items of kinds with phrase_answers whose own answer was dropped, with the phrase
    alone as the answer, if it is one.

    A small model often asks well and answers badly. The phrase is the answer to a question of fixed
    words, which is its sentence; to a generated one, if the teacher with the document in context
    finds it more likely per token than each other phrase that the question does not say.
    """
    done = {item.question for item in answered}
    open_items = [item for item in asked if _askable(item) and item.question not in done]
    fixed = [item for item in open_items if item.kind.questions]
    generated = [item for item in open_items if not item.kind.questions]
    recovered = fixed + _chosen(run, generated, counts)
    counts.add_recovered(len(recovered))
    return [_with_phrase(run.codec, item) for item in recovered]


def _askable(item: Item) -> bool:
    phrase = item.unit.fields.get("phrase", "")
    return item.kind.phrase_answers and phrase.lower() not in item.question.lower()


def _with_phrase(codec: PromptCodec, item: Item) -> Item:
    return item.given_answer(codec.form.answer(item.unit.fields["phrase"]))


def _chosen(run: RunContext, items: list[Item], counts: Counts) -> list[Item]:
    """Return the items whose phrase the teacher prefers to all others of the document."""
    codec = run.codec
    requests = []
    choices_N = [_choices(item) for item in items]
    for item, choices in zip(items, choices_N, strict=True):
        context_T = codec.context(item.unit.document, item.style(codec))
        context_T += codec.form.question(item.question)
        requests += [Request(codec.form.answer(choice), context_T) for choice in choices]
    results = iter(run.crew.logprobs(requests, TEACHER) if requests else [])
    kept = []
    for item, choices in zip(items, choices_N, strict=True):
        scores = [_mean(next(results)) for _ in choices]
        if any(score is None for score in scores):
            counts.dropped["failed"] += 1
        elif scores[0] < max(scores):
            counts.dropped["another phrase is likelier"] += 1
        else:
            kept.append(item)
    return kept


def _choices(item: Item) -> list[str]:
    """Return the item's phrase, then the other phrases of its sentence and its document that the
    question does not say.
    """
    sentence = item.unit.fields["sentence"]
    others = [sentence, *sentences(body_of(item.unit.document))]
    found = dict.fromkeys(phrase for other in others for phrase in phrases(other))
    phrase = item.unit.fields["phrase"]
    said = item.question.lower()
    distinct = [p for p in found if p.lower() not in said and p not in phrase and phrase not in p]
    return [phrase, *distinct][:MOST_CHOICES]


def _mean(logprobs_T: tuple[float, ...] | Failure) -> float | None:
    if isinstance(logprobs_T, Failure):
        return None
    return math.fsum(logprobs_T) / len(logprobs_T)
