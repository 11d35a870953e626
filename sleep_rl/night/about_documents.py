"""Questions of several kinds about documents, with filtered answers of the teacher."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import (
    CHECKPOINT,
    TEACHER,
    Document,
    Ids,
    Request,
    Sample,
)
from sleep_rl.night.sequences import Origin, TeacherSequence, question_sequence
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.session.context import RunContext
from sleep_rl.tasks.grading import RECALL_THRESHOLD, gold_recall
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.forms import NaturalForm
from sleep_rl.writing.kinds import Kind, load_kind
from sleep_rl.writing.questions import (
    answers_its_sentence,
    first_sentence,
    names_something,
    normalised,
    read_question,
    rename,
)
from sleep_rl.writing.units import Unit, draw, units

QUESTION_TOKENS = 48
SHORT_TOKENS = 32
SECOND_TEMPERATURE = 0.7
"""At temperature 1 a 135M model also leaves answers that it is right about."""
MOST_SHORT_WORDS = 24
"""Of a short answer: chat models answer in a sentence, which repeats words of the question."""


@dataclass
class Counts:
    """Counts of requested and kept texts per kind, and of dropped texts per reason."""

    kinds: dict[str, list[int]] = field(default_factory=dict)  # kind -> [requested, kept]
    dropped: Counter = field(default_factory=Counter)  # reason -> texts
    ends: Counter = field(default_factory=Counter)  # how an answer ended -> answers
    # document that no longer holds -> [prompts about it, those with a new answer]
    changed: dict[str, list[int]] = field(default_factory=dict)
    deleted: dict[str, list[int]] = field(default_factory=dict)

    def journal_fields(self) -> dict[str, Any]:
        """Return the fields of a `written` record."""
        dropped = {reason: count for reason, count in self.dropped.items() if count}
        unlearned = {"changed": self.changed, "deleted": self.deleted}
        unlearned = {what: documents for what, documents in unlearned.items() if documents}
        counts = {"kinds": self.kinds, "dropped": dropped, "ends": dict(self.ends)}
        return counts | unlearned


@dataclass(frozen=True)
class Item:
    """A question about a unit, with its answer once it has one."""

    kind: Kind
    unit: Unit
    seed: int
    question: str = ""
    answer_T: Ids = ()
    logprob: float = 0.0  # of the answer under the teacher with the document, in nats
    given: bool = False  # whether the answer is not sampled but a part of the sentence


def about_documents(
    sampler: TeacherSampler, items: list[Item], rng: random.Random, counts: Counts
) -> list[TeacherSequence]:
    """Return the sequences of all items that get a question and an answer and pass all filters."""
    run = sampler.run
    for item in items:
        counts.kinds.setdefault(item.kind.name, [0, 0])[0] += 1
    items = _add_questions(sampler, items, rng, counts)
    items = _add_answers(sampler, items, counts)
    items = _drop_unstable(sampler, items, counts)
    items += _phrase_answers(run.codec, items)
    items = _drop_without_gain(sampler, items, counts)
    for item in items:
        counts.kinds[item.kind.name][1] += not (item.given and item.kind.answer != "given")
    return [_sequence(run.codec, item, run.config.generation.other_form, rng) for item in items]


def planned_items(kinds: dict, documents: tuple[Document, ...], rng: random.Random) -> list[Item]:
    """Return all items to generate, without questions."""
    items = []
    for name, per_unit in kinds.items():
        kind = load_kind(name)
        for document in documents:
            for unit in draw(units(kind.about, document), float(per_unit or 0), rng):
                items.append(Item(kind, unit, rng.getrandbits(31)))
    return items


def _add_questions(
    sampler: TeacherSampler, items: list[Item], rng: random.Random, counts: Counts
) -> list[Item]:
    """Add a question to each item; drop items without one, and duplicates."""
    codec = sampler.run.codec
    written = [item for item in items if item.kind.instruction]
    form: NaturalForm = codec.form
    prompts = [
        form.conversation(item.kind.examples, item.kind.instruction.format(**item.unit.fields))
        for item in written
    ]
    samples = _sample_questions(sampler, written, prompts)
    with_question = []
    seen: set[str] = set()
    turns: Counter = Counter()
    for item in items:
        kind = item.kind
        if kind.instruction:
            question = _written_question(codec, item, next(samples), rng, counts)
        else:
            question = kind.questions[turns[kind.name] % len(kind.questions)]
            question = question.format(**item.unit.fields)
            turns[kind.name] += 1
        if not question:
            continue
        key = normalised(question)
        # Only questions with a short answer must be distinct: long answers may differ.
        if kind.short:
            if key in seen:
                counts.dropped["duplicate"] += 1
                continue
            seen.add(key)
        with_question.append(replace(item, question=question))
    return with_question


def _sample_questions(
    sampler: TeacherSampler, items: list[Item], prompts: list[Ids]
) -> Iterator[Sample | Failure]:
    """Yield one sample per item, at its kind's temperature."""
    samples: list[Sample | Failure | None] = [None] * len(items)
    for temperature in dict.fromkeys(item.kind.temperature for item in items):
        numbers = [n for n, item in enumerate(items) if item.kind.temperature == temperature]
        requests = [Request(prompts[n], (), items[n].seed) for n in numbers]
        sampled = sampler(requests, tokens=QUESTION_TOKENS, temperature=temperature)
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
    if not names_something(question, item.unit):
        counts.dropped["names nothing"] += 1
        return None
    return rename(question, item.unit, rng) if item.kind.rename else question


def _add_answers(sampler: TeacherSampler, items: list[Item], counts: Counts) -> list[Item]:
    """Add an answer to each item: greedy decoding for short answers, sampling for long ones."""
    codec = sampler.run.codec
    answered = []
    for item in items:
        if item.kind.answer == "given":
            rest_T = codec.form.answer(item.unit.rest)
            answered.append(replace(item, answer_T=rest_T, given=True))
    from_base = [item for item in items if item.kind.answer == "base"]
    short = [item for item in items if item.kind.answer == "document" and item.kind.short]
    long = [item for item in items if item.kind.answer == "document" and not item.kind.short]
    for group, options in (
        (from_base, {"name": CHECKPOINT, "tokens": SHORT_TOKENS * 2}),
        (short, {"temperature": 0.0, "tokens": SHORT_TOKENS}),
        (long, {}),
    ):
        samples = sampler([_request(codec, item) for item in group], shown=False, **options)
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
    about_phrase = item.kind.about == "phrase" and item.kind.answer == "document"
    sentence = item.unit.fields.get("sentence", "")
    if about_phrase and not answers_its_sentence(item.question, text[:end], sentence):
        counts.dropped["not about its sentence"] += 1
        return None
    return answer_T[: codec.tokens.token_at(answer_T, end)] if end < len(text) else answer_T


def _drop_unstable(sampler: TeacherSampler, items: list[Item], counts: Counts) -> list[Item]:
    """Drop short answers that the teacher does not repeat when sampling, or cannot be asked for
    again.
    """
    codec = sampler.run.codec
    short = [item for item in items if item.kind.short]
    requests = [replace(_request(codec, item), seed=item.seed + 1) for item in short]
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


def _phrase_answers(codec: PromptCodec, items: list[Item]) -> list[Item]:
    """Return the items of kinds with phrase_answers again, with the phrase alone as the answer: the
    student learns it without the words around it. Only where the teacher's own answer says it.
    """
    again = []
    for item in items:
        phrase = item.unit.fields.get("phrase", "")
        if not item.kind.phrase_answers or phrase.lower() in item.question.lower():
            continue
        if gold_recall(phrase, codec.text(item.answer_T)) >= RECALL_THRESHOLD:
            again.append(replace(item, answer_T=codec.form.answer(phrase), given=True))
    return again


def _repeated(item: Item, first: str, second: str) -> bool:
    """Return whether a second answer says the same: a phrase of the sentence, where one was asked
    for, else most words of the first.
    """
    if item.kind.about == "phrase" and item.kind.answer == "document":
        second = second[: first_sentence(second)]
        return answers_its_sentence(item.question, second, item.unit.fields["sentence"])
    return gold_recall(first, second) >= RECALL_THRESHOLD


def _drop_without_gain(sampler: TeacherSampler, items: list[Item], counts: Counts) -> list[Item]:
    """Drop answers whose log-probability the document raises by less than generation.min_gain.

    The log-probability with the document is known from sampling, except for given answers.
    """
    run = sampler.run
    given = [item for item in items if item.given]
    read = iter(_logprobs(run, given, document=True))
    measured = [item for item in items if item.kind.answer != "base"]
    without = iter(_logprobs(run, measured, document=False))
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


def _logprobs(run: RunContext, items: list[Item], *, document: bool) -> list[float | Failure]:
    """Return the log-probability of each item's answer, with or without its document."""
    codec = run.codec
    requests = []
    for item in items:
        context = codec.context(item.unit.document if document else None)
        requests.append(Request(item.answer_T, context + codec.form.question(item.question)))
    if not requests:
        return []
    results = run.crew.logprobs(requests, TEACHER)
    return [result if isinstance(result, Failure) else math.fsum(result) for result in results]


def _request(codec: PromptCodec, item: Item) -> Request:
    document = item.unit.document if item.kind.answer == "document" else None
    return Request(codec.form.question(item.question), codec.context(document), item.seed)


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


def _sequence(
    codec: PromptCodec, item: Item, other_form: float, rng: random.Random
) -> TeacherSequence:
    from_base = item.kind.answer == "base"
    other = codec.other is not None and rng.random() < other_form
    return question_sequence(
        codec,
        Origin.UNCONDITIONAL if from_base else Origin.DOCUMENT,
        (item.question, item.answer_T),
        None if from_base else item.unit.document,
        item.logprob,
        codec.other if other else None,
    )
