"""Generate D ~ T: the teacher's sequences of one consolidation, before the student is trained."""

from __future__ import annotations

import random
from typing import Any

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import Day, Document, Ids, Request, Sample, peer_name
from sleep_rl.night.natural import in_natural_language
from sleep_rl.night.overlap import EvaluationQuestions
from sleep_rl.night.plan import CONTEXT, ConsolidationPlan
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.night.rehearsal import rehearsal_requests, rehearse
from sleep_rl.night.sequences import NightData, Origin, TeacherSequence, filter_complete
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec


def generate(
    run: RunContext,
    plan: ConsolidationPlan,
    day: Day | None,
    rng: random.Random,
    record: ConsolidationRecord,
    lessons: list[TeacherSequence],
) -> NightData:
    """Sample D from the teacher: sequences about each document with it in context, answers to
    rehearsed prompts, unconditional sequences, and synthetic documents with sequences about them.

    `lessons`: texts of accepted dreams, which are added to the new sequences. Raises RunError if no
    new or no unconditional sequence is usable although the plan needs some.
    """
    in_form = in_natural_language if run.codec.natural else _in_fixed_form
    data, counts = in_form(run, plan, *documents_of(run.config, plan, day), rng, record)
    data.new.extend(lessons)
    data, overlap = EvaluationQuestions(run.task, run.codec).without(data)
    without_documents = day is not None and not day.documents  # there may be nothing to unlearn
    if (plan.replay_share < 1 and not data.new and not without_documents) or (
        plan.replay_share > 0 and not data.unconditional
    ):
        raise RunError(
            f"{plan.title}: the teacher generated {len(data.new)} usable new sequences and "
            f"{len(data.unconditional)} unconditional ones; dropped: {counts}"
        )
    _log(run, plan, data, counts | {"overlap": overlap})
    return data


def _in_fixed_form(
    run: RunContext,
    plan: ConsolidationPlan,
    documents: tuple[Document, ...],
    to_read: tuple[Document, ...],
    rng: random.Random,
    record: ConsolidationRecord,
) -> tuple[NightData, dict[str, int]]:
    """Sample prompt, marker and answer in one completion after the task's opener; return (D, counts
    of dropped samples).
    """
    config = run.config
    codec = run.codec
    seeds = plan.rng("write")
    about = document_requests(codec, documents, config.generation.samples, seeds)
    bare_requests = unconditional_requests(codec, plan.unconditional, seeds)
    prompts = run.index.draw(plan.rehearsed, rng)
    rehearsals = rehearsal_requests(codec, prompts, plan.rng("rehearse"))
    synthetic_count = config.reading.synthetic_documents if to_read else 0
    total = len(about) + len(bare_requests) * (1 + plan.peers) + len(rehearsals) + synthetic_count
    with run.console.phase(f"{plan.title}: teacher generates", total=total) as tick:
        sample = TeacherSampler(run, plan, record, tick)
        samples = sample(about, min_p=config.generation.min_p)
        unconditional_samples = sample(bare_requests)
        new, dropped = filter_complete(
            codec, samples, Origin.DOCUMENT, min_confidence=config.generation.min_confidence
        )
        unconditional, more = filter_complete(codec, unconditional_samples, Origin.UNCONDITIONAL)
        dropped = _sum(dropped, more)
        rehearsed, more = rehearse(sample, prompts, rehearsals)
        dropped = _sum(dropped, more)
        for peer in range(1, plan.peers + 1):
            peer_samples = sample(bare_requests, name=peer_name(peer))
            sequences, more = filter_complete(codec, peer_samples, Origin.PEER, teacher=peer)
            new += sequences
            dropped = _sum(dropped, more)
        synthetic = _synthetic(sample, to_read) if synthetic_count else []
    counts = {reason.replace(" ", "_"): count for reason, count in dropped.items()}
    return NightData(new, unconditional, rehearsed, synthetic), counts


def documents_of(
    config: Config, plan: ConsolidationPlan, day: Day | None
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Return (documents that the teacher generates sequences about, documents for reading rows).

    If a level sends, sequences about the day's documents serve reading rows only, and are not
    generated if reading rows are on synthetic documents.
    """
    if day is None or config.replay.share == 1:
        return (), ()
    to_read = day.documents if config.reading.rows else ()
    if plan.sender == CONTEXT:
        return day.documents, to_read
    return () if config.reading.synthetic_documents else to_read, to_read


def document_requests(
    codec: PromptCodec, documents: tuple[Document, ...], count: int, seeds: random.Random
) -> list[Request]:
    """Return `count` requests per document, with the document in context."""
    contexts = [codec.context(d) for d in documents for _ in range(count)]
    return [Request(codec.opener, context, seeds.getrandbits(31)) for context in contexts]


def unconditional_requests(codec: PromptCodec, count: int, seeds: random.Random) -> list[Request]:
    """Return `count` requests without a document."""
    context = codec.context(None)
    return [Request(codec.opener, context, seeds.getrandbits(31)) for _ in range(count)]


def synthetic_requests(codec: PromptCodec, count: int, seeds: random.Random) -> list[Request]:
    """Return `count` requests for synthetic documents: the prompt is bos, or eos if the tokenizer
    has no bos.
    """
    start = codec.bos or codec.eos
    return [Request(start, (), seeds.getrandbits(31)) for _ in range(count)]


def synthetic_contexts(codec: PromptCodec, samples_N: list[Sample | Failure]) -> list[Ids]:
    """Return the contexts of the synthetic documents: each text up to its eos or first opener.

    A text without a token before that is dropped.
    """
    ends = (codec.eos[0], codec.opener[0])
    contexts = []
    for sample in samples_N:
        body = () if isinstance(sample, Failure) else sample.completion_T
        if body and body[-1] in ends:
            body = body[:-1]
        if body:
            contexts.append(codec.bos + body)
    return contexts


def _synthetic(sample: TeacherSampler, to_read: tuple[Document, ...]) -> list[TeacherSequence]:
    """Generate reading data: the teacher samples documents unconditionally, then sequences about
    them.

    No expert has memorised these documents, so answering requires reading the context. Sampling is
    at generation.temperature, so that questions stay diverse; the target is at
    rehearsal.temperature.
    """
    codec = sample.run.codec
    config = sample.run.config
    longest = max(len(codec.ids(document.text)) for document in to_read)
    beginnings = synthetic_requests(
        codec, config.reading.synthetic_documents, sample.plan.rng("documents")
    )
    texts = sample(beginnings, tokens=longest, stop=codec.opener[:1])
    seeds = sample.plan.rng("read")
    requests = [
        Request(codec.opener, context, seeds.getrandbits(31))
        for context in synthetic_contexts(codec, texts)
    ]
    sequences, _ = filter_complete(
        codec,
        sample(requests, min_p=config.generation.min_p, shown=False),
        Origin.SYNTHETIC,
        min_confidence=config.generation.min_confidence,
        temperature=config.rehearsal.temperature,
    )
    return sequences


def _log(run: RunContext, plan: ConsolidationPlan, data: NightData, counts: dict[str, Any]) -> None:
    examples = data.new[:3] + data.unconditional[:3] + data.rehearsed[:3]
    run.journal.log(
        "written",
        **plan.journal_fields,
        new=len(data.new),
        unconditional=len(data.unconditional),
        rehearsed=len(data.rehearsed),
        prompts=len(run.index.prompts),
        read=len(data.synthetic),
        **counts,
        examples=[run.codec.text(s.sequence_T) for s in examples],
    )


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {reason: count + b[reason] for reason, count in a.items()}
