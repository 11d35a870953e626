"""Samplers of teacher sequences for batches."""

from __future__ import annotations

import random

from sleep_rl.night.sequences import TeacherSequence
from sleep_rl.session.rehearsal_index import RehearsalIndex


class EpochSampler:
    """Sample without replacement; reshuffle after every epoch."""

    def __init__(self, data: list[TeacherSequence], rng: random.Random):
        self.data = data
        self.rng = rng
        self.left: list[int] = []  # positions in `data` still to come in this epoch, next one last

    def restore(self, left: list[int]) -> None:
        """Continue an epoch with the positions that were left of it."""
        self.left = left

    def take(self, count: int) -> list[TeacherSequence]:
        """Return the next `count` sequences; none if there is no data."""
        if not self.data:
            return []
        return [self._next() for _ in range(count)]

    def _next(self) -> TeacherSequence:
        if not self.left:
            self.left = self.rng.sample(range(len(self.data)), len(self.data))[::-1]
        return self.data[self.left.pop()]


class DivergenceSampler:
    """Sample rehearsed sequences with replacement, weighted by `RehearsalIndex.weights` of their
    prompts, which change during training.
    """

    def __init__(self, data: list[TeacherSequence], rng: random.Random, index: RehearsalIndex):
        self.data = data
        self.rng = rng
        self.index = index

    def take(self, count: int) -> list[TeacherSequence]:
        """Return `count` sequences; none if there is no data."""
        if not self.data or not count:
            return []
        weights = self.index.weights([sequence.prompt_T for sequence in self.data])
        return self.rng.choices(self.data, weights, k=count)
