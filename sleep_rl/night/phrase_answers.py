"""Phrases of a sentence as answers: what was asked for, without words around it."""

from __future__ import annotations

from collections.abc import Iterable

from sleep_rl.contracts.errors import Failure
from sleep_rl.night.answer_filters import answer_logprobs
from sleep_rl.night.items import Counts, Item
from sleep_rl.session.context import RunContext
from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.questions import normalised
from sleep_rl.writing.units import specific_phrases

MOST_CANDIDATES = 5
"""Phrases that are compared as answers to a question."""


def phrase_answers(codec: PromptCodec, items: list[Item]) -> list[Item]:
    """Return the answered items of kinds with phrase_answers again, with the phrase alone as the
    answer: the student learns it without the words around it. Only where the answer says it.
    """
    again = []
    for item in items:
        phrase = item.unit.fields.get("phrase", "")
        answer = codec.text(item.answer_T)
        if not _unsaid(item) or normalised(phrase) == normalised(answer):
            continue
        if gold_recall(phrase, answer) >= RECALL_THRESHOLD:
            again.append(_with_phrase(codec, item))
    return again


def answered_by_phrase(
    run: RunContext,
    asked: list[Item],
    answered: list[Item],
    phrases: Iterable[str],
    counts: Counts,
) -> list[Item]:
    """Return the items of kinds with phrase_answers whose own answer was dropped, with the phrase
    alone as the answer, if it is one. `phrases`: all that were asked for, in order, to compare it
    with.

    A small model often asks well and answers badly. A name, a number or the end of a sentence is
    the answer to the sentence with an interrogative in its place; any phrase is the answer to a
    question, if the teacher with the document in context finds it likelier per token than other
    phrases.
    """
    done = {item.question for item in answered}
    unanswered = [item for item in asked if _unsaid(item) and item.question not in done]
    sure = [item for item in unanswered if _is_in_place(item)]
    unsure = [item for item in unanswered if not _is_in_place(item)]
    kept = sure + _likeliest(run, unsure, list(dict.fromkeys(phrases)), counts)
    return [_with_phrase(run.codec, item) for item in kept]


def _unsaid(item: Item) -> bool:
    """Return whether the phrase may be learned as an answer: the question does not say it."""
    phrase = item.unit.fields.get("phrase", "")
    return item.kind.phrase_answers and phrase.lower() not in item.question.lower()


def _is_in_place(item: Item) -> bool:
    """Return whether the question is the sentence with an interrogative in place of a name, a
    number or its end.
    """
    phrase = item.unit.fields["phrase"]
    return bool(item.kind.questions) and phrase in specific_phrases(item.unit.fields["sentence"])


def _with_phrase(codec: PromptCodec, item: Item) -> Item:
    return item.given_answer(codec.form.answer(item.unit.fields["phrase"]))


def _likeliest(run: RunContext, items: list[Item], others: list[str], counts: Counts) -> list[Item]:
    """Return the items whose phrase the teacher with the document finds likelier than each other
    candidate.
    """
    candidates_N = [_candidates(item, others) for item in items]
    compared = [
        item.given_answer(run.codec.form.answer(candidate))
        for item, candidates in zip(items, candidates_N, strict=True)
        for candidate in candidates
    ]
    logprobs = iter(answer_logprobs(run, compared, document=True))
    lengths = iter(len(item.answer_T) for item in compared)
    kept = []
    for item, candidates in zip(items, candidates_N, strict=True):
        results = [(next(logprobs), next(lengths)) for _ in candidates]
        if any(isinstance(logprob, Failure) for logprob, _ in results):
            counts.dropped["failed"] += 1
            continue
        means = [logprob / length for logprob, length in results]
        if len(means) == 1:
            counts.dropped["no other phrase"] += 1
        elif means[0] < max(means):
            counts.dropped["another phrase is likelier"] += 1
        else:
            kept.append(item)
    return kept


def _candidates(item: Item, others: list[str]) -> list[str]:
    """Return the item's phrase, then other possible answers of its sentence, then those of `others`
    that come next in the documents, without what the question says.
    """
    phrase = item.unit.fields["phrase"]
    said = item.question.lower()
    behind = others.index(phrase) + 1 if phrase in others else 0
    nearest = others[behind:] + others[:behind]
    found = dict.fromkeys([*specific_phrases(item.unit.fields["sentence"]), *nearest])
    distinct = [p for p in found if p.lower() not in said and p not in phrase and phrase not in p]
    return [phrase, *distinct][:MOST_CANDIDATES]
