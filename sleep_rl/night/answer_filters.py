"""Filters of generated answers: repeated when asked again, and gained from the document."""

from __future__ import annotations

import math
from dataclasses import replace

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Ids, Request, Sample
from sleep_rl.night.items import Counts, Item
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.session.context import RunContext
from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.questions import first_sentence, said_phrases

SHORT_TOKENS = 32
SECOND_TEMPERATURE = 0.7
"""At temperature 1 a 135M model also leaves answers that it is right about."""


def kept_answer(codec: PromptCodec, sample: Sample | Failure, counts: Counts) -> Ids | None:
    """Return the complete answer of a sample without its end; None, and count it, without one."""
    if isinstance(sample, Failure):
        counts.dropped["failed"] += 1
        return None
    complete = codec.complete(sample.completion_T)
    if complete is None:
        counts.dropped["no end"] += 1
        return None
    answer_T, end = complete
    counts.ends[end] += 1
    return answer_T


def drop_unstable(sampler: TeacherSampler, items: list[Item], counts: Counts) -> list[Item]:
    """Drop short answers that the teacher does not repeat when sampling, or cannot be asked for
    again.
    """
    codec = sampler.run.codec
    short = [item for item in items if item.kind.short]
    requests = [replace(answer_request(codec, item), seed=item.seed + 1) for item in short]
    samples = sampler(requests, tokens=SHORT_TOKENS, temperature=SECOND_TEMPERATURE, shown=False)
    dropped = set()
    for item, sample in zip(short, samples, strict=True):
        if isinstance(sample, Failure):
            counts.dropped["failed"] += 1
            dropped.add(id(item))
            continue
        second = codec.answer_text(sample.completion_T)
        if not _repeated(item, codec.text(item.answer_T), second):
            counts.dropped["not repeated"] += 1
            dropped.add(id(item))
    return [item for item in items if id(item) not in dropped]


def _repeated(item: Item, first: str, second: str) -> bool:
    """Return whether a second answer says the same: a phrase of the sentence, where one was asked
    for, else most words of the first.
    """
    if item.kind.about == "phrase" and item.kind.answer == "document":
        second = second[: first_sentence(second)]
        return bool(said_phrases(item.question, second, item.unit.answers))
    return gold_recall(first, second) >= RECALL_THRESHOLD


def drop_without_gain(sampler: TeacherSampler, items: list[Item], counts: Counts) -> list[Item]:
    """Drop answers whose log-probability the document raises by less than generation.min_gain.

    The log-probability with the document is known from sampling, except for given answers.
    """
    run = sampler.run
    given = [item for item in items if item.given]
    read = iter(answer_logprobs(run, given, document=True))
    measured = [item for item in items if item.kind.answer != "base"]
    without = iter(answer_logprobs(run, measured, document=False))
    kept = []
    for item in items:
        if item.kind.answer == "base":
            kept.append(item)
            continue
        with_document = next(read) if item.given else item.logprob
        without_document = next(without)
        if isinstance(with_document, Failure) or isinstance(without_document, Failure):
            counts.dropped["failed"] += 1
        elif with_document - without_document < run.config.generation.min_gain:
            counts.dropped["no gain"] += 1
        else:
            kept.append(replace(item, logprob=with_document))
    return kept


def answer_logprobs(run: RunContext, items: list[Item], *, document: bool) -> list[float | Failure]:
    """Return the log-probability of each item's answer, with or without its document."""
    codec = run.codec
    requests = []
    for item in items:
        context = codec.context(item.unit.document if document else None, item.style(codec))
        requests.append(Request(item.answer_T, context + codec.form.question(item.question)))
    if not requests:
        return []
    results = run.crew.logprobs(requests, TEACHER)
    run.count_failures("logprobs", results)
    return [result if isinstance(result, Failure) else math.fsum(result) for result in results]


def answer_request(codec: PromptCodec, item: Item) -> Request:
    """Return the request for an item's answer: with its document, unless the base answers."""
    document = item.unit.document if item.kind.answer == "document" else None
    context = codec.context(document, item.style(codec))
    return Request(codec.form.question(item.question), context, item.seed)
