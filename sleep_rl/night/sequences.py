"""Teacher sequences d of the data D, with their origin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import UNTOUCHED_BASE, Document, Ids, Sample
from sleep_rl.text.answer_style import SENTENCE, AnswerStyle
from sleep_rl.text.codec import PromptCodec
from sleep_rl.text.forms import NaturalForm


class Origin(StrEnum):
    """Origin of a sequence: who generated it, and from which context."""

    DOCUMENT = "document"  # by the teacher with a document of the day in context
    UNCONDITIONAL = "unconditional"  # by the teacher from bos, without a document
    NEIGHBOUR = "neighbour"  # the untouched base's answer to a question that no document answers
    REHEARSED = "rehearsed"  # the teacher's answer to a prompt of a past night
    SYNTHETIC = "synthetic"  # about a document that the teacher generated unconditionally
    PEER = "peer"  # unconditionally by a model of model.teachers
    DELETED = "deleted"  # the untouched base's answer to a prompt about a deleted document
    DREAM = "dream"  # a text of an accepted dream; its target is the text itself


SELF_REPLAY = (Origin.UNCONDITIONAL, Origin.NEIGHBOUR, Origin.REHEARSED)
"""Origins of self-replay, which preserves what the model knew before the night."""


@dataclass(frozen=True)
class TeacherSequence:
    """One sequence d: the generated prompt x with its marker, the answer y, and eos.

    The teacher reads context_T + sequence_T, the student bare_T + sequence_T.
    """

    origin: Origin
    context_T: Ids  # before x, with the document if there is one
    bare_T: Ids  # the same without the document
    sequence_T: Ids
    x_length: int = 0  # leading tokens of sequence_T that belong to x, marker included
    prompt_T: Ids = ()  # the rehearsed prompt with which sequence_T begins
    teacher: int = 0  # whose distribution is the target; see TrainingRow.teacher
    answer_probability: float = 1.0  # of the answer y under the teacher
    temperature: float = 1.0  # of the teacher's distribution on y as the target
    document: str = ""  # id of the document that x asks about
    given: bool = False  # whether y is not the teacher's own answer but a part of a sentence

    @property
    def replay(self) -> bool:
        """Whether it belongs to self-replay."""
        return self.origin in SELF_REPLAY

    @property
    def shared(self) -> int:
        """Leading tokens of context_T that sequences about the same document share."""
        return len(self.context_T) if self.origin == Origin.DOCUMENT else 0


@dataclass(frozen=True)
class NightData:
    """D of one consolidation, by the kind of rows made from it."""

    new: list[TeacherSequence]  # to be learned (for reading rows only, if a level sends)
    unconditional: list[TeacherSequence]  # self-replay without a document, neighbours included
    rehearsed: list[TeacherSequence]  # self-replay on prompts of past nights
    synthetic: list[TeacherSequence]  # for reading rows on synthetic documents


def question_sequence(
    codec: PromptCodec,
    origin: Origin,
    question: str,
    answer_T: Ids,
    document: Document | None,
    logprob: float,
    form: NaturalForm | None = None,
    *,
    style: AnswerStyle = SENTENCE,
    given: bool = False,
) -> TeacherSequence:
    """Return the sequence of a question and its answer in the run's form, or in `form`.

    `document`: that the teacher reads, with `style`; without one the teacher is the untouched base.
    `given`: see TeacherSequence.
    """
    if form is None:
        form = codec.form
    else:
        answer_T = form.answer(codec.text(answer_T))
    x_T = form.question(question)
    return TeacherSequence(
        origin,
        form.context(document, style),
        form.context(None),
        x_T + answer_T + (form.end,),
        len(x_T),
        teacher=UNTOUCHED_BASE if document is None else 0,
        answer_probability=math.exp(logprob),
        document=document.id if document else "",
        given=given,
    )


def filter_complete(
    codec: PromptCodec,
    samples_N: list[Sample | Failure],
    origin: Origin,
    *,
    min_confidence: float = 0.0,
    temperature: float = 1.0,
    teacher: int = 0,
) -> tuple[list[TeacherSequence], dict[str, int]]:
    """Return (sequences, reason -> number of dropped samples).

    A sample becomes a sequence if it ends with eos and has a prompt, an answer y, and at least
    probability `min_confidence` for y. `temperature`, `teacher`: see TeacherSequence.
    """
    sequences = []
    dropped = {"failed": 0, "unfinished": 0, "no answer": 0, "unsure": 0}
    for sample in samples_N:
        if isinstance(sample, Failure):
            dropped["failed"] += 1
            continue
        if sample.finish_reason != "stop":
            dropped["unfinished"] += 1
            continue
        parts = codec.split(sample.completion_T)
        if parts is None:
            dropped["no answer"] += 1
            continue
        prompt_T, answer_T = parts
        probability = _probability(sample, len(answer_T))
        if probability < min_confidence:
            dropped["unsure"] += 1
            continue
        sequence = TeacherSequence(
            origin,
            sample.context_T + codec.opener,
            codec.bare,
            sample.completion_T,
            len(prompt_T),
            prompt_T=sample.prompt_T[len(codec.opener) :],
            teacher=teacher,
            answer_probability=probability,
            temperature=temperature,
        )
        sequences.append(sequence)
    return sequences, dropped


def _probability(sample: Sample, tokens: int) -> float:
    """Return the probability of the last `tokens` tokens of a sample."""
    return math.exp(math.fsum(sample.logprobs_T[-tokens:]))


def pack(sequences: Sequence[TeacherSequence]) -> dict:
    """Return sequences as plain data for a checkpoint, with each distinct context once."""
    contexts = list(dict.fromkeys(c for s in sequences for c in (s.context_T, s.bare_T)))
    positions = {context: i for i, context in enumerate(contexts)}
    rows = [
        [
            str(s.origin),
            positions[s.context_T],
            positions[s.bare_T],
            list(s.sequence_T),
            s.x_length,
            list(s.prompt_T),
            s.teacher,
            s.answer_probability,
            s.temperature,
            s.document,
            s.given,
        ]
        for s in sequences
    ]
    return {"contexts": [list(context) for context in contexts], "rows": rows}


def unpack(plain: dict) -> list[TeacherSequence]:
    """Return the sequences that `pack` was given.

    Raises KeyError, TypeError, ValueError or IndexError for data of another form.
    """
    contexts = [tuple(context) for context in plain["contexts"]]
    return [_unpacked(contexts, *row) for row in plain["rows"]]


def _unpacked(
    contexts: list[Ids],
    origin: str,
    context: int,
    bare: int,
    sequence: list[int],
    x_length: int,
    prompt: list[int],
    *values: Any,
) -> TeacherSequence:
    """Return the sequence of one row of `pack`; `context`, `bare`: positions in `contexts`."""
    ids = (contexts[context], contexts[bare], tuple(sequence))
    return TeacherSequence(Origin(origin), *ids, x_length, tuple(prompt), *values)
