"""The teacher's last hidden states of a step's rows, computed once and kept for the night: within a
night the teacher does not change (paper.md section 3).

Shape suffixes: N rows, T tokens of a completion, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learners.hidden_state_cache import HiddenStateCache, Reading
from learners.passes import split_into_passes
from learners.seeding import Seeding
from sleep_rl.contracts.records import HARD_TARGET, TEACHER, TrainingRow
from sleep_rl.model.packing import PaddedRows


class Teacher:
    """Reads rows as the smaller self, or as a model of model.teachers."""

    def __init__(self, module: Seeding, cache: HiddenStateCache, *, budget: int, device: str):
        """`budget`: padded tokens of a pass."""
        self.module = module
        self.cache = cache
        self.budget = budget
        self.device = device

    def forget(self) -> None:
        """Drop what is kept: the teacher changed."""
        self.cache.clear()

    @torch.no_grad()
    def hidden(self, rows_N: list[TrainingRow], at_least: int = 0) -> list[Tensor | None]:
        """Return the last hidden states [T, D] that predict each row's completion; None for a row
        with a hard target.

        at_least: passes of the smaller self to make, needed or not.
        """
        readings = [reading_of(row) for row in rows_N]
        # the teacher's own sequences are drawn many times, a sample of the student once
        recurs = {r: not row.behaviour_T for r, row in zip(readings, rows_N, strict=True)}
        known = {reading: self.cache.get(reading) for reading in recurs if reading}
        missing = [reading for reading, hidden_TD in known.items() if hidden_TD is None]
        known |= self._compute(missing, at_least)
        for reading in missing:
            if recurs[reading]:
                self.cache.put(reading, known[reading])
        return [known[r].to(self.device) if r else None for r in readings]

    def pass_count(self, rows_N: list[TrainingRow]) -> int:
        """Return how many passes of the smaller self these rows take where none are kept."""
        readings = {reading_of(row) for row in rows_N} - {None}
        return len(self._passes([r for r in readings if r.teacher == 0]))

    def _compute(self, readings: list[Reading], at_least: int) -> dict[Reading, Tensor]:
        """Return the hidden states of readings in passes over readings of like length."""
        out = {}
        for teacher in sorted({reading.teacher for reading in readings} | {0}):
            own = [reading for reading in readings if reading.teacher == teacher]
            passes = self._passes(own, 0 if teacher else at_least)
            for part in passes:
                out |= self._one_pass(teacher, part)
            if teacher == 0:
                filler = Reading(0, (self.module.pad,), (self.module.pad,))
                for _ in range(at_least - len(passes)):
                    self._one_pass(0, [filler])
        return out

    def _passes(self, readings: list[Reading], at_least: int = 0) -> list[list[Reading]]:
        lengths = [len(r.prompt_T) + len(r.completion_T) for r in readings]
        passes = split_into_passes(lengths, self.budget, at_least)
        return [[readings[n] for n in numbers] for numbers in passes]

    def _one_pass(self, teacher: int, readings: list[Reading]) -> dict[Reading, Tensor]:
        model = self.module.other_teachers[teacher - 1] if teacher else self.module.model
        completions = [reading.completion_T for reading in readings]
        packed = PaddedRows.of(
            [reading.prompt_T for reading in readings], completions, self.module.pad, self.device
        )
        pieces = self.module.hidden(packed, TEACHER, model).split([len(c) for c in completions])
        return dict(zip(readings, pieces, strict=True))


def reading_of(row: TrainingRow) -> Reading | None:
    """Return what the teacher reads of a row; None where its target is the text itself."""
    if row.teacher == HARD_TARGET:
        return None
    return Reading(row.teacher, row.teacher_T or row.prompt_T, row.completion_T)
