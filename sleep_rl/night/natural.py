"""D ~ T in natural language: questions about each document with the teacher's answers, and
self-replay for which the teacher generates the user's turns.
"""

from __future__ import annotations

import random
from typing import Any

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Document, Ids, Request, Sample, peer_name
from sleep_rl.night.about_documents import QUESTION_TOKENS, about_documents
from sleep_rl.night.answer_filters import kept_answer
from sleep_rl.night.items import Counts, planned_items
from sleep_rl.night.plan import ConsolidationPlan
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.night.rehearsal import rehearsal_requests, rehearse_with_cuts
from sleep_rl.night.sequences import NightData, Origin, TeacherSequence
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.night.unlearning import answer_anew, superseded_prompts, unlearns
from sleep_rl.session.context import RunContext
from sleep_rl.text.codec import PromptCodec

USER_MIN_P = 0.05
"""min_p of generated user's turns: with it 104 of 120 were sensible with SmolLM2-135M."""

INTERROGATIVES = ("What", "Who", "Where", "When", "Which", "How")
"""First words of every second generated user's turn. Without them a chat model mostly generates
long tasks, but a night changes answers to short questions first, since it trains on them.
"""


def in_natural_language(
    run: RunContext,
    plan: ConsolidationPlan,
    documents: tuple[Document, ...],
    to_read: tuple[Document, ...],
    rng: random.Random,
    record: ConsolidationRecord,
) -> tuple[NightData, dict[str, Any]]:
    """Return (D, counts for the journal): sequences about the documents, self-replay, rehearsed
    answers, and self-replay of peers.

    Reading rows are on `documents`, which include those of `to_read`. Prompts about
    superseded documents are not rehearsed, but answered anew.
    """
    config = run.config
    seeds = plan.rng("write")
    items = planned_items(config.generation.kinds, documents, seeds)
    superseded = superseded_prompts(run, plan.night)
    to_unlearn = superseded if unlearns(config, plan) else {}
    prompts = run.index.draw(plan.rehearsed, rng, without=superseded)
    total = len(items) + plan.unconditional * (1 + plan.peers) + len(prompts) + len(to_unlearn)
    counts = Counts()
    with run.console.phase(f"{plan.title}: teacher generates", total=total) as tick:
        sampler = TeacherSampler(run, plan, record, tick)
        new = about_documents(sampler, items, seeds, counts)
        if unlearns(config, plan):
            new += answer_anew(sampler, to_unlearn, counts)
        unconditional = self_replay(sampler, plan.unconditional, seeds, counts)
        for peer in range(1, plan.peers + 1):
            new += self_replay(sampler, plan.unconditional, seeds, counts, peer)
        requests = rehearsal_requests(run.codec, prompts, plan.rng("rehearse"))
        rehearsed = rehearse_with_cuts(sampler, requests, counts)
    unconditional += [sequence for sequence in new if sequence.origin == Origin.NEIGHBOUR]
    new = [sequence for sequence in new if sequence.origin != Origin.NEIGHBOUR]
    return NightData(new, unconditional, rehearsed, []), counts.journal_fields()


def self_replay(
    sampler: TeacherSampler, count: int, rng: random.Random, counts: Counts, peer: int = 0
) -> list[TeacherSequence]:
    """Generate self-replay: in chat form a user's turn after the bare header, every second one
    after an interrogative, then its answer; in raw form plain text.

    `peer`: number of the model of model.teachers that generates; 0: the teacher.
    """
    codec = sampler.run.codec
    origin = Origin.PEER if peer else Origin.UNCONDITIONAL
    name = peer_name(peer) if peer else TEACHER
    seeds = [rng.getrandbits(31) for _ in range(count)]
    if codec.form.name == "raw":
        start = codec.bos or codec.eos
        requests = [Request((), start, seed) for seed in seeds]
        samples = sampler(requests, name=name, plain=True)
        texts = [sample for sample in samples if not isinstance(sample, Failure)]
        counts.dropped["failed"] += len(samples) - len(texts)
        return [
            TeacherSequence(origin, start, start, sample.completion_T, teacher=peer)
            for sample in texts
            if sample.completion_T
        ]
    openings = [_opening(codec, number) for number in range(count)]
    requests = [
        Request(opening_T, codec.bare, seed)
        for opening_T, seed in zip(openings, seeds, strict=True)
    ]
    turns = sampler(requests, name=name, min_p=USER_MIN_P, tokens=QUESTION_TOKENS)
    prompts = []
    for opening_T, turn in zip(openings, turns, strict=True):
        x_T = _user_turn(codec, opening_T, turn, counts)
        if x_T:
            prompts.append(x_T)
    requests = [Request(x_T, codec.bare, rng.getrandbits(31)) for x_T in prompts]
    sequences = []
    for x_T, sample in zip(prompts, sampler(requests, name=name, shown=False), strict=True):
        answer_T = kept_answer(codec, sample, counts)
        if answer_T is not None:
            sequence_T = x_T + answer_T + codec.eos
            sequences.append(
                TeacherSequence(origin, codec.bare, codec.bare, sequence_T, len(x_T), teacher=peer)
            )
    return sequences


def _opening(codec: PromptCodec, number: int) -> Ids:
    """Return the ids with which a generated user's turn begins: none, or an interrogative."""
    if number % 2 == 0:
        return ()
    return codec.ids(INTERROGATIVES[number // 2 % len(INTERROGATIVES)])


def _user_turn(
    codec: PromptCodec, opening_T: Ids, sample: Sample | Failure, counts: Counts
) -> Ids | None:
    """Return a generated user's turn with the marker; None if it has no end or no words."""
    if isinstance(sample, Failure):
        counts.dropped["failed"] += 1
        return None
    x_T = sample.completion_T
    if not x_T or x_T[-1] not in codec.ends or not codec.text(x_T).strip():
        counts.dropped["no end"] += 1
        return None
    return opening_T + x_T[:-1] + codec.marker
