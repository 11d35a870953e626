"""Unlearn superseded documents: the prompts of past nights about them are answered anew.

The teacher of a changed document's prompts is the model with the new text in context, that of a
deleted one's the untouched base (`TrainingRow.teacher`). Which documents are superseded follows
from the days so far, so that a night that was rolled back is made up for in the next one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import CHECKPOINT, TEACHER, Day, Document, Ids, Request, Sample
from sleep_rl.night.answer_filters import kept_answer
from sleep_rl.night.items import Counts
from sleep_rl.night.plan import CONTEXT, ConsolidationPlan
from sleep_rl.night.sequences import Origin, TeacherSequence, question_sequence
from sleep_rl.night.teacher import TeacherSampler
from sleep_rl.session.context import RunContext
from sleep_rl.text.retrieval import Retriever


@dataclass(frozen=True)
class Successor:
    """Successor of a piece of a document: the document's name, and the new pieces' ids; none if the
    document was deleted.
    """

    name: str
    pieces: tuple[str, ...]


def unlearns(config: Config, plan: ConsolidationPlan) -> bool:
    """Return whether a consolidation learns about documents, and unlearns superseded ones."""
    return plan.sender == CONTEXT and config.replay.share < 1


def successors(days: Iterable[Day]) -> dict[str, Successor]:
    """Return id of each superseded piece after these days -> its newest successor."""
    found: dict[str, Successor] = {}
    for day in days:
        for each in day.superseded:
            for piece, successor in found.items():
                if successor.pieces == each.old:
                    found[piece] = Successor(successor.name, each.new)
            found |= {piece: Successor(each.name, each.new) for piece in each.old}
    return found


def superseded_prompts(run: RunContext, night: int) -> dict[Ids, Successor]:
    """Return the indexed prompts x about documents that are superseded in this night, in order."""
    found = successors(run.task.days()[:night])
    return {x: found[document] for x, document in run.index.documents.items() if document in found}


def answer_anew(
    sampler: TeacherSampler, superseded: dict[Ids, Successor], counts: Counts
) -> list[TeacherSequence]:
    """Return sequences of the prompts with greedy answers: of the teacher with the new text in
    context, or of the untouched base without any.
    """
    run = sampler.run
    days = run.task.days()[: sampler.plan.night]
    for each in (each for day in days[-1:] for each in day.superseded):
        _count_of(counts, each.name, changed=bool(each.new))
    pieces = _Pieces(days)
    prompts = [
        _Prompt(x_T, run.codec.asked(x_T), successor.name, pieces, successor.pieces)
        for x_T, successor in superseded.items()
    ]
    rng = random.Random(f"anew {run.config.run.seed} {sampler.plan.night}")
    sequences = []
    for of_changed, name in ((True, TEACHER), (False, CHECKPOINT)):
        group = [prompt for prompt in prompts if (prompt.document is not None) == of_changed]
        requests = [Request(p.x_T, run.codec.context(p.document, run.codec.style)) for p in group]
        samples = sampler(requests, name=name, temperature=0.0)
        for prompt, sample in zip(group, samples, strict=True):
            count = _count_of(counts, prompt.name, changed=of_changed)
            count[0] += 1
            answer_T = kept_answer(run.codec, sample, counts)
            if answer_T is not None:
                count[1] += 1
                sequences.append(_sequence(run, prompt, answer_T, sample, rng))
    return sequences


class _Pieces:
    """Finds the piece of a document that fits a question best."""

    def __init__(self, days: Sequence[Day]):
        self._documents = {d.id: d for day in days for d in day.documents}
        self._retrievers: dict[tuple[str, ...], Retriever] = {}

    def best(self, ids: tuple[str, ...], question: str) -> Document | None:
        """Return the best of these pieces by BM25; the first where none shares a word with the
        question, None where there are none.
        """
        pieces = [self._documents[name] for name in ids]
        if len(pieces) < 2:
            return pieces[0] if pieces else None
        if ids not in self._retrievers:
            self._retrievers[ids] = Retriever(pieces)
        return next(iter(self._retrievers[ids].best(question)), pieces[0])


class _Prompt:
    """A prompt x of a past night, and the document that its answer must be given by now."""

    def __init__(
        self, x_T: Ids, question: str, name: str, pieces: _Pieces, successor: tuple[str, ...]
    ):
        self.x_T = x_T
        self.question = question
        self.name = name
        self.document = pieces.best(successor, question)


def _sequence(
    run: RunContext, prompt: _Prompt, answer_T: Ids, sample: Sample, rng: random.Random
) -> TeacherSequence:
    codec = run.codec
    other = rng.random() < run.config.generation.other_form
    return question_sequence(
        codec,
        Origin.DELETED if prompt.document is None else Origin.DOCUMENT,
        prompt.question,
        answer_T,
        prompt.document,
        math.fsum(sample.logprobs_T[: len(answer_T)]),
        codec.other if other else None,
        style=codec.style,
    )


def _count_of(counts: Counts, name: str, *, changed: bool) -> list[int]:
    """Return [prompts, those with a new answer] of a document."""
    return (counts.changed if changed else counts.deleted).setdefault(name, [0, 0])
