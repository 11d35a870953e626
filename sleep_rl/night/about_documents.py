"""Questions of several kinds about documents, with filtered answers of the teacher."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import CHECKPOINT, Ids, Request, Sample
from sleep_rl.night.answer_filters import (
    SHORT_TOKENS,
    answer_request,
    drop_unstable,
    drop_without_gain,
    kept_answer,
)
from sleep_rl.night.items import Counts, Item, unsaid_items
from sleep_rl.night.phrase_answers import answered_by_phrase, phrase_answers
from sleep_rl.night.sequences import Origin, TeacherSequence, question_sequence
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.forms import NaturalForm
from sleep_rl.writing.questions import (
    first_sentence,
    mentions_document,
    names_something,
    normalised,
    read_question,
    rename,
    said_phrases,
)
from sleep_rl.writing.units import Unit

QUESTION_TOKENS = 48
MOST_SHORT_WORDS = 24
"""Of a short answer: chat models answer in a sentence, which repeats words of the question."""


def about_documents(
    sampler: TeacherSampler, planned: list[Item], rng: random.Random, counts: Counts
) -> list[TeacherSequence]:
    """Return the sequences of all items that get a question and an answer and pass all filters.

    Phrases that no kept answer says are asked for once more.
    """
    run = sampler.run
    asked: set[str] = set()
    kept = _kept(sampler, planned, asked, rng, counts)
    again = unsaid_items(run.codec, planned, kept, rng)
    kept += _kept(sampler, again, asked, rng, counts, shown=False)
    return [_sequence(run, item, rng) for item in kept]


def _kept(
    sampler: TeacherSampler,
    items: list[Item],
    asked: set[str],
    rng: random.Random,
    counts: Counts,
    *,
    shown: bool = True,
) -> list[Item]:
    """Return the items that pass all filters, with question and answer.

    `asked`: all questions so far, extended by this call; `shown`: see TeacherSampler.
    """
    for item in items:
        counts.kinds.setdefault(item.kind.name, [0, 0])[0] += 1
    phrases = [item.unit.fields["phrase"] for item in items if item.kind.about == "phrase"]
    items = _add_questions(sampler, items, asked, rng, counts, shown=shown)
    answered = drop_unstable(sampler, _add_answers(sampler, items, counts), counts)
    answered += phrase_answers(sampler.run.codec, answered)
    answered += answered_by_phrase(sampler.run, items, answered, phrases, counts)
    kept = drop_without_gain(sampler, answered, counts)
    _count_kept(kept, counts)
    return kept


def _count_kept(kept: list[Item], counts: Counts) -> None:
    """Count each question once; those that the phrase answers, too, come after the others."""
    counted = set()
    for item in kept:
        question = (item.question, item.seed)
        if question in counted:
            continue
        counted.add(question)
        counts.kinds[item.kind.name][1] += 1
        if item.given and item.kind.answer != "given":
            counts.by_phrase[item.kind.name] += 1


def _add_questions(
    sampler: TeacherSampler,
    items: list[Item],
    asked: set[str],
    rng: random.Random,
    counts: Counts,
    *,
    shown: bool,
) -> list[Item]:
    """Add a question to each item; drop items without one, and those that were asked before."""
    codec = sampler.run.codec
    written = [item for item in items if item.kind.instruction]
    form: NaturalForm = codec.form
    prompts = [
        form.conversation(item.kind.examples, item.kind.instruction.format(**item.unit.fields))
        for item in written
    ]
    samples = _sample_questions(sampler, written, prompts, shown=shown)
    with_question = []
    turns: Counter = Counter()
    for item in items:
        kind = item.kind
        if kind.instruction:
            question = _written_question(codec, item, next(samples), rng, counts)
        else:
            question = kind.questions[turns[kind.name] % len(kind.questions)]
            question = question.format(**item.unit.fields)
            if kind.short:
                question = _with_title(question, item.unit)
            turns[kind.name] += 1
        if not question:
            continue
        key = normalised(question)
        # Only questions with a short answer must be distinct: long answers may differ.
        if kind.short:
            if key in asked:
                counts.dropped["duplicate"] += 1
                continue
            asked.add(key)
        with_question.append(replace(item, question=question))
    return with_question


def _sample_questions(
    sampler: TeacherSampler, items: list[Item], prompts: list[Ids], *, shown: bool
) -> Iterator[Sample | Failure]:
    """Yield one sample per item, at its kind's temperature."""
    samples: list[Sample | Failure | None] = [None] * len(items)
    for temperature in dict.fromkeys(item.kind.temperature for item in items):
        numbers = [n for n, item in enumerate(items) if item.kind.temperature == temperature]
        requests = [Request(prompts[n], (), items[n].seed) for n in numbers]
        sampled = sampler(requests, tokens=QUESTION_TOKENS, temperature=temperature, shown=shown)
        for n, sample in zip(numbers, sampled, strict=True):
            samples[n] = sample
    yield from samples


def _written_question(
    codec: PromptCodec, item: Item, sample: Sample | Failure, rng: random.Random, counts: Counts
) -> str | None:
    if isinstance(sample, Failure):
        counts.dropped["failed"] += 1
        return None
    question = read_question(codec.answer_text(sample.completion_T), statement=not item.kind.short)
    if question is None:
        counts.dropped["no question"] += 1
        return None
    question = _with_title(question, item.unit)
    return rename(question, item.unit, rng) if item.kind.rename else question


def _with_title(question: str, unit: Unit) -> str:
    """Return a question after its document's title if it names nothing: "When was it founded?" has
    another answer in another document.
    """
    if names_something(question, unit):
        return question
    return f"{unit.fields['title']}: {question}"


def _add_answers(sampler: TeacherSampler, items: list[Item], counts: Counts) -> list[Item]:
    """Add an answer to each item: greedy decoding for short answers, sampling for long ones."""
    codec = sampler.run.codec
    answered = []
    for item in items:
        if item.kind.answer == "given":
            rest_T = codec.form.answer(item.unit.rest)
            answered.append(item.given_answer(rest_T))
    from_base = [item for item in items if item.kind.answer == "base"]
    short = [item for item in items if item.kind.answer == "document" and item.kind.short]
    long = [item for item in items if item.kind.answer == "document" and not item.kind.short]
    for group, options in (
        (from_base, {"name": CHECKPOINT, "tokens": SHORT_TOKENS * 2}),
        (short, {"temperature": 0.0, "tokens": SHORT_TOKENS}),
        (long, {}),
    ):
        samples = sampler([answer_request(codec, item) for item in group], shown=False, **options)
        for item, sample in zip(group, samples, strict=True):
            answer_T = kept_answer(codec, sample, counts)
            if answer_T is None:
                continue
            if item.kind.short:
                answer_T = _short_answer(codec, item, answer_T, counts)
                if answer_T is None:
                    continue
            logprob = math.fsum(sample.logprobs_T[: len(answer_T)])
            answered.append(replace(item, answer_T=answer_T, logprob=logprob))
    return answered


def _short_answer(codec: PromptCodec, item: Item, answer_T: Ids, counts: Counts) -> Ids | None:
    """Return the first sentence of an answer; None, and count it, if it is too long or is not about
    the sentence that was asked about.
    """
    text = codec.tokens.text(answer_T, special=True)
    end = first_sentence(text)
    if len(text[:end].split()) > MOST_SHORT_WORDS:
        counts.dropped["long answer"] += 1
        return None
    if mentions_document(text[:end], f"{item.question} {item.unit.source}"):
        counts.dropped["mentions the document"] += 1
        return None
    about_phrase = item.kind.about == "phrase" and item.kind.answer == "document"
    if about_phrase and not said_phrases(item.question, text[:end], item.unit.answers):
        counts.dropped["not about its sentence"] += 1
        return None
    return answer_T[: codec.tokens.token_at(answer_T, end)] if end < len(text) else answer_T


def _sequence(run: RunContext, item: Item, rng: random.Random) -> TeacherSequence:
    codec = run.codec
    from_base = item.kind.answer == "base"
    other = codec.other is not None and rng.random() < run.config.generation.other_form
    return question_sequence(
        codec,
        Origin.NEIGHBOUR if from_base else Origin.DOCUMENT,
        item.question,
        item.answer_T,
        None if from_base else item.unit.document,
        item.logprob,
        codec.other if other else None,
        style=item.style(codec),
        given=item.given,
    )
