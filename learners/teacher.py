"""The teacher's last hidden states of a step's rows, cached for the night: within a night the
teacher does not change (paper.md section 3).

Shape suffixes: N rows, T tokens of a completion, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.document_states import DocumentStates, document_of
from learners.hidden_state_cache import HiddenStateCache, TeacherInput
from learners.passes import split_into_passes
from learners.seeding import Seeding
from sleep_rl.contracts.records import (
    CHECKPOINT,
    HARD_TARGET,
    TEACHER,
    UNTOUCHED_BASE,
    TrainingRow,
)
from sleep_rl.model.memory import memory_levels
from sleep_rl.model.packing import PaddedRows

OF_THIS_MODEL = (UNTOUCHED_BASE, 0)
"""Teachers that are states of the model that the learner trains."""


class Teacher:
    """Computes hidden states with the memory's TEACHER state (teacher 0), its CHECKPOINT state
    (UNTOUCHED_BASE) or model.teachers (k).
    """

    def __init__(self, module: Seeding, cache: HiddenStateCache, *, budget: int, device: str):
        """Keep the memory, which must be that of the checkpoint, as state CHECKPOINT. `budget`:
        padded tokens of a pass.
        """
        self.module = module
        for level in memory_levels(module.model).values():
            level.remember_checkpoint()
        self.cache = cache
        self.budget = budget
        self.device = device
        self.documents = DocumentStates(cache.limit, module.pad, device)

    def clear_cache(self) -> None:
        """Empty the cache, because the teacher changed."""
        self.cache.clear()
        self.documents.cache.clear()

    @torch.no_grad()
    def hidden(self, rows_N: list[TrainingRow], min_passes: int = 0) -> list[Tensor | None]:
        """Return the last hidden states [T, D] that predict each row's completion; None for a row
        with a hard target.

        min_passes: smallest number of passes of the trained model; padding passes are added.
        """
        inputs = [teacher_input(row) for row in rows_N]
        # the teacher's own sequences are drawn many times, a sample of the student only once
        recurs = {r: not row.behaviour_T for r, row in zip(inputs, rows_N, strict=True)}
        cached = {key: self.cache.get(key) for key in recurs if key}
        missing = [key for key, hidden_TD in cached.items() if hidden_TD is None]
        cached |= self._compute(missing, min_passes)
        for key in missing:
            if recurs[key]:
                self.cache.put(key, cached[key])
        return [cached[r].to(self.device) if r else None for r in inputs]

    def pass_count(self, rows_N: list[TrainingRow]) -> int:
        """Return the number of passes of the trained model for these rows with an empty cache."""
        inputs = {teacher_input(row) for row in rows_N} - {None}
        return sum(len(self._passes([r for r in inputs if r.teacher == k])) for k in OF_THIS_MODEL)

    def _compute(self, inputs: list[TeacherInput], min_passes: int) -> dict[TeacherInput, Tensor]:
        """Return the hidden states [T, D] of inputs, computed in passes of similar lengths."""
        out = {}
        missing = min_passes  # passes of the trained model that are still to be made
        for teacher in sorted({key.teacher for key in inputs} | {0}):
            of_teacher = [key for key in inputs if key.teacher == teacher]
            out |= self._after_documents(teacher, of_teacher)
            of_teacher = [key for key in of_teacher if key not in out]
            passes = self._passes(of_teacher, max(missing, 0) if teacher == 0 else 0)
            for part in passes:
                out |= self._one_pass(teacher, part)
            if teacher in OF_THIS_MODEL:
                missing -= len(passes)
            if teacher == 0:
                filler = TeacherInput(0, (self.module.pad,), (self.module.pad,))
                for _ in range(missing):
                    self._one_pass(0, [filler])
        return out

    def _passes(self, inputs: list[TeacherInput], min_passes: int = 0) -> list[list[TeacherInput]]:
        lengths = [len(r.prompt_T) + len(r.completion_T) for r in inputs]
        passes = split_into_passes(lengths, self.budget, min_passes)
        return [[inputs[n] for n in numbers] for numbers in passes]

    def _after_documents(
        self, teacher: int, inputs: list[TeacherInput]
    ) -> dict[TeacherInput, Tensor]:
        """Return the hidden states of the inputs whose documents are cached."""
        model = self.module.teacher_model(teacher)
        groups: dict[TeacherInput, list[TeacherInput]] = {}
        for key in inputs:
            if self.documents.suits(model, key):
                groups.setdefault(document_of(key), []).append(key)
        out = {}
        for document, group in groups.items():
            before = len(document.prompt_T)
            lengths = [len(key.prompt_T) - before + len(key.completion_T) for key in group]
            for numbers in split_into_passes(lengths, self.budget):
                part = [group[n] for n in numbers]
                out |= dict(zip(part, self.documents.hidden(model, part), strict=True))
        return out

    def _one_pass(self, teacher: int, inputs: list[TeacherInput]) -> dict[TeacherInput, Tensor]:
        model = self.module.teacher_model(teacher)
        view = CHECKPOINT if teacher == UNTOUCHED_BASE else TEACHER
        completions = [key.completion_T for key in inputs]
        packed = PaddedRows.of(
            [key.prompt_T for key in inputs], completions, self.module.pad, self.device
        )
        pieces = self.module.hidden(packed, view, model).split([len(c) for c in completions])
        return dict(zip(inputs, pieces, strict=True))


def teacher_input(row: TrainingRow) -> TeacherInput | None:
    """Return the teacher's input of a row; None for a hard target."""
    if row.teacher == HARD_TARGET:
        return None
    prompt_T = row.teacher_T or row.prompt_T
    return TeacherInput(row.teacher, prompt_T, row.completion_T, row.shared)
