"""Evaluation questions among the prompts that are trained on."""

from __future__ import annotations

from dataclasses import replace

from sleep_rl.contracts.records import Question
from sleep_rl.contracts.roles import Task
from sleep_rl.night.sequences import NightData, TeacherSequence
from sleep_rl.text.codec import PromptCodec
from sleep_rl.writing.questions import normalised


class EvaluationQuestions:
    """The questions of a task as normalised text."""

    def __init__(self, task: Task, codec: PromptCodec):
        self._codec = codec
        forms = [form for form in (codec.form, codec.other) if form]
        self._markers = [normalised(codec.text(form.marker)) for form in forms]
        questions = [*task.known(), *(q for day in task.days() for q in day.questions)]
        self._texts = {self._of_question(question) for question in questions} - {""}

    def without(self, data: NightData) -> tuple[NightData, int]:
        """Return (data, number of distinct evaluation questions among its prompts).

        In natural language their sequences are dropped. A task with a fixed form has few ways to
        ask, and its teacher writes the very questions of the evaluation: there they stay.
        """
        parts = (data.new, data.unconditional, data.rehearsed, data.synthetic)
        found = {self._of_sequence(s) for part in parts for s in part} & self._texts
        if not found or not self._codec.natural:
            return data, len(found)
        new, unconditional, rehearsed, synthetic = (
            [s for s in part if self._of_sequence(s) not in found] for part in parts
        )
        kept = replace(
            data, new=new, unconditional=unconditional, rehearsed=rehearsed, synthetic=synthetic
        )
        return kept, len(found)

    def _of_sequence(self, sequence: TeacherSequence) -> str:
        if not sequence.x_length:
            return ""
        ids = self._codec.opener + sequence.sequence_T[: sequence.x_length]
        return self._without_marker(self._codec.text(ids))

    def _of_question(self, question: Question) -> str:
        """Return the text of a question without its marker, which only prompts of a fixed form
        contain.
        """
        if self._codec.natural:
            return normalised(question.prompt)
        return self._without_marker(question.prompt)

    def _without_marker(self, text: str) -> str:
        words = normalised(text)
        marker = next((f" {m}" for m in self._markers if m and words.endswith(f" {m}")), "")
        return words.removesuffix(marker)
