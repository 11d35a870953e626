"""Compose batches of student groups, teacher sequences, self-replay and reading rows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import Metrics, Request, Sample, TrainingRow
from sleep_rl.night.continuations import (
    Prefix,
    continuation_requests,
    cut,
    reward_pairs,
    student_rows,
)
from sleep_rl.night.plan import ConsolidationPlan, Shares
from sleep_rl.night.rows import reading_rows, synthetic_document_rows, teacher_rows
from sleep_rl.night.samplers import DivergenceSampler, EpochSampler
from sleep_rl.night.sequences import NightData, TeacherSequence
from sleep_rl.session.context import RunContext


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step: student groups, teacher sequences, reading rows."""

    rows: list[TrainingRow]
    sequences: tuple[TeacherSequence, ...]  # of the rows from `first` on
    first: int  # number of rows on student samples


@dataclass(frozen=True)
class Round:
    """The optimizer steps between two pushes of the student, with their batches."""

    number: int
    steps: range
    batches: tuple[Batch, ...]
    rewards: Metrics
    oldest: int  # version of the student among the samples; 0: no samples
    newest: int
    scored_s: float  # seconds of the reward call


class BatchComposer:
    """Composes the rounds of one consolidation from its data."""

    def __init__(
        self,
        run: RunContext,
        plan: ConsolidationPlan,
        data: NightData,
        rng: random.Random,
        sample: Callable[[list[Request], int], list[Sample | Failure]],
    ):
        """Create the samplers; `sample(requests, round)` samples from the student."""
        self.run = run
        self.plan = plan
        self.rng = rng
        self.sample = sample
        self.shares = Shares.of(run.config, plan.replay_share, plan.on_policy)
        self.off_policy = Shares.of(run.config, plan.replay_share, 0.0)
        self.off_policy_steps = round(run.config.objective.off_policy_first * plan.steps)
        self.new = EpochSampler(data.new, rng)
        self.unconditional = EpochSampler(data.unconditional, rng)
        self.synthetic = EpochSampler(data.synthetic, rng)
        self.rehearsed = DivergenceSampler(data.rehearsed, rng, run.index)

    def round(self, number: int, steps: range) -> Round:
        """Sample y ~ S(.|x) for the coming `steps`, score them (equations 4 and 5), and compose the
        batches.
        """
        config = self.run.config
        codec = self.run.codec
        shares = self.off_policy if steps.start < self.off_policy_steps else self.shares
        groups_new = shares.groups_new * len(steps)
        groups_replay = shares.groups_replay * len(steps)
        sequences = self.new.take(groups_new) + self._replay(groups_replay)
        prefixes = [cut(codec, sequence, config, self.rng) for sequence in sequences]
        requests = continuation_requests(prefixes, config, self.rng)
        samples = self.sample(requests, number)
        rewards, metrics, scored_s = self._score(prefixes, samples)
        groups = student_rows(codec, prefixes, samples, rewards, config)
        new = groups[:groups_new]
        replay = groups[groups_new:]
        batches = tuple(self._batch(shares, new, replay) for _ in steps)
        done = [sample for sample in samples if not isinstance(sample, Failure)]
        versions = [version for sample in done for version in sample.versions_T]
        oldest = min(versions, default=0)
        newest = max(versions, default=0)
        return Round(number, steps, batches, metrics, oldest, newest, scored_s)

    def _score(
        self, prefixes: list[Prefix], samples: list[Sample | Failure]
    ) -> tuple[list[float | Failure] | None, Metrics, float]:
        """Return (rewards, their metrics, seconds); rewards None if the imitation term is off."""
        began = time.monotonic()
        if self.run.config.objective.alpha == 1 or not samples:
            return None, {}, time.monotonic() - began
        pairs = reward_pairs(prefixes, samples, self.run.config.imitation.group_size)
        rewards, metrics = self.run.crew.score(pairs)
        self.run.count_failures("reward", rewards)
        return rewards, metrics, time.monotonic() - began

    def _batch(
        self, shares: Shares, new: list[list[TrainingRow]], replay: list[list[TrainingRow]]
    ) -> Batch:
        """Compose the rows of one step; pops its groups from `new` and `replay`."""
        rows = _take_groups(new, shares.groups_new) + _take_groups(replay, shares.groups_replay)
        sequences = self.new.take(shares.teacher_new) + self._replay(shares.teacher_replay)
        count = self.plan.reading_rows
        reading = synthetic_document_rows(self.run.codec, self.synthetic.take(count))
        if not reading:
            reading = reading_rows(self.new.take(count))
        if not rows and not sequences:
            raise RunError(
                f"{self.plan.title}: no rows to train on, since every sample of the round failed "
                "(see the journal's `failure` records); nothing of this night was applied"
            )
        first = len(rows)
        taught = teacher_rows(sequences, self.run.config.objective.hard_share)
        return Batch(rows + taught + reading, tuple(sequences), first)

    def _replay(self, count: int) -> list[TeacherSequence]:
        """Take `count` self-replay sequences: rehearsal.share of them rehearsed, if there are
        any, the rest unconditional.
        """
        rehearsed = self.rehearsed.take(round(self.run.config.rehearsal.share * count))
        return rehearsed + self.unconditional.take(count - len(rehearsed))


def _take_groups(groups: list[list[TrainingRow]], count: int) -> list[TrainingRow]:
    rows: list[TrainingRow] = []
    for _ in range(min(count, len(groups))):
        rows += groups.pop()
    return rows
