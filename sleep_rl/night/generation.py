"""D ~ T: what the teacher writes in a night, before the student is trained."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import TEACHER, Day, Document, Ids, Request, Sample, peer_name
from sleep_rl.night.plan import CONTEXT, ConsolidationPlan
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.night.sequences import NightData, Origin, TeacherSequence, filter_complete
from sleep_rl.session.context import RunContext
from sleep_rl.session.prompts import PromptCodec


def generate(
    run: RunContext,
    plan: ConsolidationPlan,
    day: Day | None,
    rng: random.Random,
    record: ConsolidationRecord,
    lessons: list[TeacherSequence],
) -> NightData:
    """Let the teacher write D: about each document with it in context, answers to rehearsed
    prompts, unconditional samples, and synthetic documents to read.

    `lessons`: texts of accepted dreams, which are new, too. Raises RunError when nothing of a kind
    that the plan needs can be used.
    """
    config = run.config
    codec = run.codec
    seed = f"{plan.night} {plan.sender}"
    documents, to_read = documents_of(config, plan, day)
    seeds = random.Random(f"write {config.run.seed} {seed}")
    about = document_requests(codec, documents, config.generation.samples, seeds)
    count = config.replay.samples if plan.replay_share > 0 else 0
    unconditional = unconditional_requests(codec, count, seeds)
    prompts = []
    if config.rehearsal.share:
        prompts = run.index.draw(config.rehearsal.samples, rng)
    rehearsals = rehearsal_requests(codec, prompts, config, seed)
    synthetic_count = config.reading.synthetic_documents if to_read else 0
    total = len(about) + len(unconditional) * (1 + plan.peers) + len(rehearsals) + synthetic_count
    with run.console.phase(f"{plan.title}: the teacher writes", total=total) as tick:
        write = Writer(run, plan, record, tick)
        samples = write(about, min_p=config.generation.min_p)
        free_samples = write(unconditional)
        new, dropped = filter_complete(
            codec, samples, Origin.DOCUMENT, min_confidence=config.generation.min_confidence
        )
        replay, more = filter_complete(codec, free_samples, Origin.UNCONDITIONAL)
        dropped = _sum(dropped, more)
        rehearsed, more = _rehearse(write, prompts, rehearsals)
        dropped = _sum(dropped, more)
        for peer in range(1, plan.peers + 1):
            written, more = filter_complete(
                codec, write(unconditional, name=peer_name(peer)), Origin.PEER, peer=peer
            )
            new += written
            dropped = _sum(dropped, more)
        synthetic = _write_synthetic(write, to_read) if synthetic_count else []
    new += lessons
    if (plan.replay_share < 1 and not new) or (plan.replay_share > 0 and not replay):
        raise RunError(
            f"{plan.title}: the teacher wrote {len(new)} readable sequences about what is new and "
            f"{len(replay)} from nothing; left out: {dropped}"
        )
    data = NightData(new, replay, rehearsed, synthetic)
    _log(run, plan, data, dropped)
    return data


def documents_of(
    config: Config, plan: ConsolidationPlan, day: Day | None
) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Return (documents that the teacher writes about, documents of the day that reading rows are
    for).

    The context window still holds the day's documents when a level sends: they are then only read,
    unless there are synthetic ones.
    """
    if day is None or config.replay.share == 1:
        return (), ()
    to_read = day.documents if config.reading.rows else ()
    if plan.sender == CONTEXT:
        return day.documents, to_read
    return () if config.reading.synthetic_documents else to_read, to_read


class Writer:
    """Samples from a teacher for the data of one consolidation; counts tokens and ticks."""

    def __init__(
        self,
        run: RunContext,
        plan: ConsolidationPlan,
        record: ConsolidationRecord,
        tick: Callable[..., None],
    ):
        self.run = run
        self.plan = plan
        self.record = record
        self.tick = tick

    def __call__(
        self,
        requests_N: list[Request],
        *,
        name: str = TEACHER,
        temperature: float | None = None,
        min_p: float = 0.0,
        tokens: int | None = None,
        stop: Ids = (),
        shown: bool = True,
    ) -> list[Sample | Failure]:
        """Sample from state `name`. `temperature`: if not generation's; `tokens`: at most, if not
        the task's number; `stop`: tokens that end a sample beside eos; `shown`: counted by the
        progress bar.
        """
        samples = self.run.sample(
            requests_N,
            name,
            tokens or self.run.task.max_new_tokens,
            temperature or self.run.config.generation.temperature,
            min_p,
            stop,
            **self.plan.journal_fields,
            round=0,
        )
        self.record.count_sampled(samples)
        self.tick(len(samples) if shown else 0)
        return samples


def document_requests(
    codec: PromptCodec, documents: tuple[Document, ...], count: int, seeds: random.Random
) -> list[Request]:
    """Return `count` requests to write about each document, with it in context."""
    contexts = [codec.context(d) for d in documents for _ in range(count)]
    return [Request(codec.opener, context, seeds.getrandbits(31)) for context in contexts]


def unconditional_requests(codec: PromptCodec, count: int, seeds: random.Random) -> list[Request]:
    """Return `count` requests to write without any document."""
    context = codec.context(None)
    return [Request(codec.opener, context, seeds.getrandbits(31)) for _ in range(count)]


def rehearsal_requests(
    codec: PromptCodec, prompts: list[Ids], config: Config, seed: str
) -> list[Request]:
    """Return the requests to answer prompts of past nights, without any document."""
    seeds = random.Random(f"rehearse {config.run.seed} {seed}")
    context = codec.context(None)
    return [Request(codec.opener + x, context, seeds.getrandbits(31)) for x in prompts]


def synthetic_requests(codec: PromptCodec, config: Config, seed: str) -> list[Request]:
    """Return the requests to write a document: behind bos, or behind another text's end where a
    tokenizer has no bos.
    """
    seeds = random.Random(f"documents {config.run.seed} {seed}")
    start = codec.bos or codec.eos
    return [
        Request(start, (), seeds.getrandbits(31)) for _ in range(config.reading.synthetic_documents)
    ]


def synthetic_contexts(codec: PromptCodec, samples_N: list[Sample | Failure]) -> list[Ids]:
    """Return the contexts that synthetic documents make: each up to where it ends or begins to ask.
    What asks at once is no document.
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


def with_prompts(prompts: list[Ids], samples_N: list[Sample | Failure]) -> list[Sample | Failure]:
    """Return answers to rehearsed prompts with the prompt in front, as if all of it was written."""
    return [
        sample
        if isinstance(sample, Failure)
        else replace(sample, completion_T=x + sample.completion_T)
        for x, sample in zip(prompts, samples_N, strict=True)
    ]


def _rehearse(
    write: Writer, prompts: list[Ids], requests: list[Request]
) -> tuple[list[TeacherSequence], dict[str, int]]:
    config = write.run.config
    temperature = config.rehearsal.temperature
    samples = with_prompts(prompts, write(requests, temperature=temperature))
    return filter_complete(
        write.run.codec,
        samples,
        Origin.REHEARSED,
        min_confidence=config.rehearsal.min_confidence,
        temperature=temperature,
    )


def _write_synthetic(write: Writer, to_read: tuple[Document, ...]) -> list[TeacherSequence]:
    """Synthetic reading data: the teacher samples documents unconditionally, then writes about
    them.

    No expert has memorised these documents, so answering requires reading the context. Sampled at
    the ordinary temperature, so that questions stay diverse; learned at that of rehearsal.
    """
    codec = write.run.codec
    config = write.run.config
    seed = f"{write.plan.night} {write.plan.sender}"
    longest = max(len(codec.ids(document.text)) for document in to_read)
    drafts = write(synthetic_requests(codec, config, seed), tokens=longest, stop=codec.opener[:1])
    seeds = random.Random(f"read {config.run.seed} {seed}")
    requests = [
        Request(codec.opener, context, seeds.getrandbits(31))
        for context in synthetic_contexts(codec, drafts)
    ]
    sequences, _ = filter_complete(
        codec,
        write(requests, min_p=config.generation.min_p, shown=False),
        Origin.SYNTHETIC,
        min_confidence=config.generation.min_confidence,
        temperature=config.rehearsal.temperature,
    )
    return sequences


def _log(
    run: RunContext, plan: ConsolidationPlan, data: NightData, dropped: dict[str, int]
) -> None:
    examples = data.new[:3] + data.unconditional[:3] + data.rehearsed[:3]
    run.journal.log(
        "written",
        **plan.journal_fields,
        new=len(data.new),
        replay=len(data.unconditional),
        rehearsed=len(data.rehearsed),
        prompts=len(run.index.prompts),
        read=len(data.synthetic),
        **{reason.replace(" ", "_"): count for reason, count in dropped.items()},
        examples=[run.codec.text(s.sequence_T) for s in examples],
    )


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {reason: count + b[reason] for reason, count in a.items()}
