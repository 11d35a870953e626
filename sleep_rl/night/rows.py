"""Convert teacher sequences to training rows."""

from __future__ import annotations

from sleep_rl.contracts.records import HARD_TARGET, TrainingRow
from sleep_rl.night.sequences import Origin, TeacherSequence
from sleep_rl.text.codec import PromptCodec


def teacher_rows(sequences: list[TeacherSequence], hard_share: float = 0.0) -> list[TrainingRow]:
    """Return rows on teacher sequences: the teacher has the document in context, the student not.

    The loss covers the prompt x, too, so that the student learns to generate it. The text of a
    dream keeps its own prompt, and its target is the text itself. `hard_share`: see
    TrainingRow; of sequences whose answer was given.
    """
    return [_teacher_row(sequence, hard_share if sequence.given else 0.0) for sequence in sequences]


def _teacher_row(sequence: TeacherSequence, hard_share: float = 0.0) -> TrainingRow:
    return TrainingRow(
        prompt_T=sequence.bare_T,
        completion_T=sequence.sequence_T,
        teacher_T=sequence.context_T,
        replay=sequence.replay,
        teacher=HARD_TARGET if sequence.origin == Origin.DREAM else sequence.teacher,
        x_length=sequence.x_length,
        temperature=sequence.temperature,
        hard_share=hard_share,
        shared=sequence.shared,
    )


def reading_rows(sequences: list[TeacherSequence]) -> list[TrainingRow]:
    """Return rows on which both teacher and student have the document in context.

    Without these rows the new expert degrades in-context reading (or never inherits it from the
    sender), and the teachers of later nights generate worse data. A sequence about a document that
    was deleted has none, and keeps its row.
    """
    return [
        _teacher_row(sequence) if sequence.origin == Origin.DELETED else _reading_row(sequence)
        for sequence in sequences
    ]


def _reading_row(sequence: TeacherSequence) -> TrainingRow:
    return TrainingRow(
        prompt_T=sequence.context_T,
        completion_T=sequence.sequence_T,
        replay=True,
        x_length=sequence.x_length,
    )


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
        before_x = sequence.context_T
        whole_T = before_x + sequence.sequence_T
        row = TrainingRow(
            prompt_T=whole_T[:start],
            completion_T=whole_T[start:],
            replay=True,
            x_length=len(before_x) + sequence.x_length - start,
            temperature=sequence.temperature,
        )
        rows.append(row)
    return rows
