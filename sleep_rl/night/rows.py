"""Convert teacher sequences to training rows."""

from __future__ import annotations

from sleep_rl.contracts.records import HARD_TARGET, TrainingRow
from sleep_rl.night.sequences import Origin, TeacherSequence, prompt_length
from sleep_rl.session.prompts import PromptCodec


def teacher_rows(codec: PromptCodec, sequences: list[TeacherSequence]) -> list[TrainingRow]:
    """Return rows on teacher sequences: the teacher has the document in context, the student not.

    The loss covers the prompt x, too, so that the student learns to generate it. The text of a
    dream keeps its own prompt, and its target is the text itself.
    """
    return [_teacher_row(codec, sequence) for sequence in sequences]


def _teacher_row(codec: PromptCodec, sequence: TeacherSequence) -> TrainingRow:
    x_length = prompt_length(codec, sequence)
    if sequence.origin == Origin.DREAM:
        return TrainingRow(
            prompt_T=sequence.context_T,
            completion_T=sequence.sequence_T,
            teacher_T=sequence.context_T,
            teacher=HARD_TARGET,
            x_length=x_length,
        )
    return TrainingRow(
        prompt_T=codec.context(None) + codec.opener,
        completion_T=sequence.sequence_T,
        teacher_T=sequence.context_T + codec.opener,
        replay=sequence.replay,
        teacher=sequence.peer,
        x_length=x_length,
        temperature=sequence.temperature,
    )


def reading_rows(codec: PromptCodec, sequences: list[TeacherSequence]) -> list[TrainingRow]:
    """Return rows on which both teacher and student have the document in context.

    Without these rows the new expert degrades in-context reading (or never inherits it from the
    sender), and the teachers of later nights generate worse data.
    """
    return [
        TrainingRow(
            prompt_T=sequence.context_T + codec.opener,
            completion_T=sequence.sequence_T,
            replay=True,
            x_length=codec.x_length(sequence.sequence_T) or 0,
        )
        for sequence in sequences
    ]


def synthetic_document_rows(
    codec: PromptCodec, sequences: list[TeacherSequence]
) -> list[TrainingRow]:
    """Return reading rows on synthetic documents.

    The loss covers the document as well, so that the student keeps the ability to generate
    documents.
    """
    start = len(codec.bos) or 1  # tokens before the loss
    rows = []
    for sequence in sequences:
        before_x = sequence.context_T + codec.opener
        whole_T = before_x + sequence.sequence_T
        x_tokens = codec.x_length(sequence.sequence_T) or 0
        row = TrainingRow(
            prompt_T=whole_T[:start],
            completion_T=whole_T[start:],
            replay=True,
            x_length=len(before_x) + x_tokens - start,
            temperature=sequence.temperature,
        )
        rows.append(row)
    return rows
