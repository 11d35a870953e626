"""What is written in a night, and what becomes of it: prompts, prefixes to continue, rows to train
on.

All of it is a pure function of its inputs and a seed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import (
    HARD_TARGET,
    Document,
    Ids,
    Pair,
    Request,
    Sample,
    TrainingRow,
)
from sleep_rl.rewards import group_advantage
from sleep_rl.session.prompts import PromptCodec


@dataclass(frozen=True)
class TeacherSequence:
    """One sequence d of D: written by the teacher behind `context` + opener, ended by itself, with
    marker and answer.
    """

    context_T: Ids  # what the teacher had in front: bos, and the document unless it is replay
    sequence_T: Ids  # d, with eos
    replay: bool
    prompt_T: Ids = ()  # the rehearsed prompt that it begins with
    teacher: int = 0  # who wrote it: see contracts.records.TrainingRow
    sure: float = 1.0  # the probability of its answer y, which the teacher gave it
    temperature: float = (
        1.0  # of the teacher's distribution on y: see contracts.records.TrainingRow
    )


@dataclass(frozen=True)
class Prefix:
    """A random beginning x of a written sequence, for the student to continue (Learning to
    Imitate).
    """

    written: TeacherSequence
    length: int

    @property
    def begun_T(self) -> Ids:
        return self.written.sequence_T[: self.length]

    @property
    def rest_T(self) -> Ids:
        return self.written.sequence_T[self.length :]

    def x_length(self, texts: PromptCodec, completion_T: Ids) -> int:
        """Tokens of a continuation that still belong to the prompt x."""
        end = texts.x_length(self.begun_T + completion_T)
        return len(completion_T) if end is None else max(end - self.length, 0)


def writing_requests(
    texts: PromptCodec, documents: tuple[Document, ...], config: Config, seed: str
) -> tuple[list[Request], list[Request]]:
    """Prompts that the teacher continues: `generation.samples` per document with it in context,
    `replay.samples` without any.
    """
    behind = [texts.context(d) for d in documents for _ in range(config.generation.samples)]
    free = [texts.context(None)] * (config.replay.samples if config.replay.share > 0 else 0)
    seeds = random.Random(f"write {config.run.seed} {seed}")
    behind, free = (
        [Request(texts.opener, c, seeds.getrandbits(31)) for c in contexts]
        for contexts in (behind, free)
    )
    return behind, free


def document_requests(texts: PromptCodec, config: Config, seed: str) -> list[Request]:
    """Texts that begin from nothing: with bos, or behind the end of another text where there is
    none.
    """
    seeds = random.Random(f"documents {config.run.seed} {seed}")
    return [
        Request(texts.bos or texts.eos, (), seeds.getrandbits(31))
        for _ in range(config.reading.synthetic_documents)
    ]


def documents_of(texts: PromptCodec, samples_N: list[Sample | Failure]) -> list[Ids]:
    """The contexts that such texts are, up to where one ends or asks; what asks at once is no
    document.
    """
    ends, out = (texts.eos[0], texts.opener[0]), []
    for sample in samples_N:
        body = () if isinstance(sample, Failure) else sample.completion_T
        body = body[:-1] if body and body[-1] in ends else body
        out += [texts.bos + body] if body else []
    return out


def rehearsal_requests(
    texts: PromptCodec, prompts: list[Ids], config: Config, seed: str
) -> list[Request]:
    """The teacher is asked what it asked itself before; it answers without any document."""
    seeds = random.Random(f"rehearse {config.run.seed} {seed}")
    return [Request(texts.opener + x, texts.context(None), seeds.getrandbits(31)) for x in prompts]


def rehearsed(prompts: list[Ids], samples_N: list[Sample | Failure]) -> list[Sample | Failure]:
    """The answers, each with its prompt in front, as if the whole had been written."""
    return [
        s if isinstance(s, Failure) else replace(s, completion_T=x + s.completion_T)
        for x, s in zip(prompts, samples_N, strict=True)
    ]


def readable(
    texts: PromptCodec, samples_N: list[Sample | Failure], confidence: float = 0.0
) -> tuple[list[TeacherSequence], dict[str, int]]:
    """(D, counts of what was left out and why): a sequence must end by itself and hold a question
    and an answer. An answer about a document, or to a prompt that was given, must have had at least
    the probability `confidence`.
    """
    data, left = [], {"failed": 0, "unfinished": 0, "no answer": 0, "unsure": 0}
    plain = texts.context(None)
    for sample in samples_N:
        # what it was asked, if it was
        begun = () if isinstance(sample, Failure) else sample.prompt_T[len(texts.opener) :]
        if isinstance(sample, Failure):
            left["failed"] += 1
        elif sample.finish_reason != "stop":
            left["unfinished"] += 1
        elif (parts := texts.split(sample.completion_T)) is None:
            left["no answer"] += 1
        elif (begun or sample.context_T != plain) and _sure(sample, parts[1]) < confidence:
            left["unsure"] += 1
        else:
            free = sample.context_T == plain
            data.append(
                TeacherSequence(
                    sample.context_T, sample.completion_T, free, begun, sure=_sure(sample, parts[1])
                )
            )
    return data, left


def _sure(sample: Sample, answer_T: Ids) -> float:
    return math.exp(math.fsum(sample.logprobs_T[-len(answer_T) :]))


def cut(written: TeacherSequence, config: Config, rng: random.Random) -> Prefix:
    """Prefix law: uniform between prefix_min and prefix_max of the sequence, at least one token on
    either side.
    """
    length = len(written.sequence_T)
    share = rng.uniform(config.imitation.prefix_min, config.imitation.prefix_max)
    return Prefix(written, min(max(int(share * length), 1), length - 1))


def continuation_requests(
    texts: PromptCodec, prefixes: list[Prefix], config: Config, rng: random.Random
) -> list[Request]:
    """`group` student continuations of each prefix, without the document."""
    return [
        Request(texts.opener + p.begun_T, texts.context(None), rng.getrandbits(31))
        for p in prefixes
        for _ in range(config.imitation.group_size)
    ]


def pairs_of(
    prefixes: list[Prefix], samples_N: list[Sample | Failure], group: int
) -> list[Pair | Failure]:
    """The student's continuation beside the teacher's of the same prefix (prefix excluded), for the
    rewards.
    """
    return [
        s
        if isinstance(s, Failure)
        else Pair(s.completion_T, prefixes[i // group].rest_T, prefixes[i // group].begun_T)
        for i, s in enumerate(samples_N)
    ]


def student_rows(
    texts: PromptCodec,
    prefixes: list[Prefix],
    samples_N: list[Sample | Failure],
    rewards_N: list[float | Failure] | None,
    config: Config,
) -> list[list[TrainingRow]]:
    """One group of rows per prefix: both terms of equation 6 on the same student samples. A failed
    sample has no row; one whose reward failed has no advantage. `rewards_N` None: imitation is off.
    """
    size = config.imitation.group_size
    groups = []
    for i, prefix in enumerate(prefixes):
        mine = slice(i * size, (i + 1) * size)
        advantages = (
            group_advantage(rewards_N[mine], config.imitation.scale_advantage)
            if rewards_N is not None
            else [None] * size
        )
        rows = [
            TrainingRow(
                prompt_T=sample.context_T + sample.prompt_T,
                completion_T=sample.completion_T,
                teacher_T=prefix.written.context_T + sample.prompt_T,
                advantage=advantage,
                behaviour_T=sample.logprobs_T,
                replay=prefix.written.replay,
                teacher=prefix.written.teacher,
                x_length=prefix.x_length(texts, sample.completion_T),
                temperature=prefix.written.temperature,
            )
            for sample, advantage in zip(samples_N[mine], advantages, strict=True)
            if not isinstance(sample, Failure)
        ]
        groups.append(rows)
    return groups


def reading_rows(texts: PromptCodec, written: list[TeacherSequence]) -> list[TrainingRow]:
    """Self-replay of reading: teacher and student both have the document in front. Without it the
    new expert wears down what the model does with its context (or never takes it over from a
    sender), and later teachers write worse.
    """
    return [
        TrainingRow(
            prompt_T=w.context_T + texts.opener,
            completion_T=w.sequence_T,
            replay=True,
            x_length=texts.x_length(w.sequence_T) or 0,
        )
        for w in written
    ]


def whole_rows(texts: PromptCodec, written: list[TeacherSequence]) -> list[TrainingRow]:
    """The same for documents that the teacher wrote itself, which are replayed, too: so it can go
    on writing them.
    """
    rows = []
    for w in written:
        begun, whole = len(texts.bos) or 1, w.context_T + texts.opener + w.sequence_T
        asks = len(whole) - len(w.sequence_T) + (texts.x_length(w.sequence_T) or 0)
        rows.append(
            TrainingRow(
                prompt_T=whole[:begun],
                completion_T=whole[begun:],
                replay=True,
                x_length=asks - begun,
                temperature=w.temperature,
            )
        )
    return rows


def teacher_rows(texts: PromptCodec, written: list[TeacherSequence]) -> list[TrainingRow]:
    """Rows on the teacher's own sequences, questions included: what is written can be written again
    (self-replay). What was told stands behind its own beginning.
    """
    start = texts.context(None) + texts.opener
    return [
        TrainingRow(
            prompt_T=w.context_T if w.teacher == HARD_TARGET else start,
            completion_T=w.sequence_T,
            teacher_T=w.context_T + texts.opener * (w.teacher != HARD_TARGET),
            replay=w.replay,
            teacher=w.teacher,
            x_length=asked(texts, w),
            temperature=w.temperature,
        )
        for w in written
    ]


def asked(texts: PromptCodec, w: TeacherSequence) -> int:
    """Tokens of a sequence that ask: up to the marker, where it stands behind the opener."""
    behind = w.teacher != HARD_TARGET or w.context_T[-len(texts.opener) :] == texts.opener
    return (texts.x_length(w.sequence_T) or 0) if behind else 0


def packed(data: list[TeacherSequence]) -> dict:
    """D as plain data, each context once; `unpacked` takes it back."""
    contexts = {context: i for i, context in enumerate(dict.fromkeys(w.context_T for w in data))}
    return {
        "contexts": [list(context) for context in contexts],
        "rows": [
            [
                contexts[w.context_T],
                list(w.sequence_T),
                w.replay,
                list(w.prompt_T),
                w.teacher,
                w.sure,
                w.temperature,
            ]
            for w in data
        ],
    }


def unpacked(plain: dict) -> list[TeacherSequence]:
    """What `packed` was given. Raises what plain data of another shape raises."""
    contexts = [tuple(context) for context in plain["contexts"]]
    return [
        TeacherSequence(
            contexts[context], tuple(sequence), replay, tuple(prompt), teacher, sure, temperature
        )
        for context, sequence, replay, prompt, teacher, sure, temperature in plain["rows"]
    ]
