"""One consolidation (paper.md section 3), from D to the trained expert.

Its steps, one file each: `generation`: document -> teacher sequences; `continuations`: prefix ->
student samples and rewards; `rows` and `continuations`: sequences -> training rows; `batches`: rows
-> batch; `learners/`: batch -> loss -> expert. `pipeline` runs rollouts and learner concurrently.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import closing

from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import STUDENT, TEACHER, Day, Request, Sample, StepResult
from sleep_rl.night.batches import BatchComposer, Round
from sleep_rl.night.generation import generate
from sleep_rl.night.pipeline import Flow, NumberedSteps, run_rounds
from sleep_rl.night.plan import CONTEXT, ConsolidationPlan, fitted
from sleep_rl.night.progress import load_progress, restore_samplers, save_progress
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.night.sequences import NightData, Origin, TeacherSequence
from sleep_rl.night.unlearning import superseded_prompts, unlearns
from sleep_rl.session.context import RunContext


class Consolidation:
    """The training of one consolidation on its data; created by `begin` or `resume`."""

    def __init__(
        self,
        run: RunContext,
        plan: ConsolidationPlan,
        rng: random.Random,
        record: ConsolidationRecord,
        data: NightData,
        done: int = 0,
    ):
        """Create a consolidation of which `done` optimizer steps are finished."""
        self.run = run
        self.plan = plan
        self.rng = rng
        self.record = record
        self.data = data
        self.done = done
        self.composer = BatchComposer(run, plan, data, rng, self._sample)

    @classmethod
    def begin(
        cls,
        run: RunContext,
        plan: ConsolidationPlan,
        day: Day | None,
        lessons: list[TeacherSequence] | None = None,
    ) -> Consolidation:
        """Push teacher and student to the rollout workers, and generate D.

        Call it after the learner's `open_night`. `day`: None if no document is in context;
        `lessons`: texts of accepted dreams.
        """
        rng = plan.rng("night")
        record = ConsolidationRecord(run, plan)
        run.crew.push(TEACHER, TEACHER)
        run.crew.push(STUDENT, STUDENT)
        data = generate(run, plan, day, rng, record, lessons or [])
        plan = fitted(plan, run.config, len(data.new), len(data.rehearsed))
        return cls(run, plan, rng, record, data)

    @classmethod
    def resume(cls, run: RunContext, plan: ConsolidationPlan) -> Consolidation | None:
        """Restore the checkpoint of an interrupted consolidation; None if there is none.

        Call it after the learner's `open_night`. Raises RunError if the checkpoint belongs to
        another consolidation.
        """
        rng = plan.rng("night")
        record = ConsolidationRecord(run, plan)
        saved = load_progress(run, plan, rng, record)
        if saved is None:
            return None
        counts = (len(saved.data.new), len(saved.data.rehearsed))
        plan = fitted(plan, run.config, *counts)
        consolidation = cls(run, plan, rng, record, saved.data, saved.step)
        restore_samplers(consolidation.composer, saved.left)
        run.crew.restore_progress(saved.learner, saved.step, plan.steps)
        return consolidation

    def train(self) -> None:
        """Minimise L_KS over the new expert (section 3 b), in rounds of sampling y ~ S(.|x),
        scoring r(y), optimizer steps and a push of the student.

        A checkpoint before the first step keeps D, whose generation takes a good part of a night.
        """
        plan = self.plan
        checkpoint_steps = self.run.config.run.checkpoint_steps
        cluster = self.run.config.cluster
        flow = Flow(
            plan.title,
            sample=self.composer.round,
            push=lambda: self.run.crew.push(STUDENT, STUDENT),
            push_async=lambda: self.run.crew.push_async(STUDENT, STUDENT),
            trained=self.record.round,
            limit_s=2 * cluster.call_timeout_s + cluster.start_timeout_s,
        )
        with self.run.console.phase(f"{plan.title}: seeding", total=plan.steps) as tick:
            if checkpoint_steps and not self.done:
                self._save_progress(0)
            tick(self.done)
            # Between two spans no round is queued and the newest student is pushed.
            for span in spans(plan, self.done, checkpoint_steps):
                with closing(run_rounds(flow, span, self.run.config.sleep.lag)) as rounds:
                    for sampled in rounds:
                        self._train_round(sampled, tick)
                last = span[-1][1].stop
                if last < plan.steps:
                    self._save_progress(last)

    def finish(self) -> None:
        """Add the generated prompts to the rehearsal index, retire those about superseded
        documents, and write the summary record.
        """
        rehearsal = self.run.config.rehearsal
        if unlearns(self.run.config, self.plan):
            self.run.index.retire(self.plan.night, superseded_prompts(self.run, self.plan.night))
        if self.plan.sender <= CONTEXT:  # else the new sequences only served reading rows
            self._index_prompts(self.data.new, rehearsal.prompts)
        self._index_prompts(self.data.unconditional, rehearsal.unconditional_prompts)
        self.record.finish(self.plan.steps)

    def _save_progress(self, step: int) -> None:
        save_progress(self.run, self.rng, self.composer, self.record, self.data, step)

    def _train_round(self, sampled: Round, tick: Callable[..., None]) -> None:
        learn = self.run.crew.learn
        for step, batch in zip(sampled.steps, sampled.batches, strict=True):
            result = learn.seed_step(batch.rows, step, self.plan.steps)
            self._update_priorities(sampled, step, result)
            self._check_gap(sampled, step, result)
            self.record.step(step, self.plan.steps, result.metrics, sampled.rewards)
            tick(1, f"loss {result.metrics['loss']:.3f}")

    def _update_priorities(self, sampled: Round, step: int, result: StepResult) -> None:
        """Update the priority of each rehearsed prompt with its teacher-student divergence."""
        batch = sampled.batches[step - sampled.steps.start]
        divergence_N = result.divergence_N[batch.first :]
        # The reading rows follow the sequences; their divergence is not used.
        for sequence, divergence in zip(batch.sequences, divergence_N, strict=False):
            if sequence.prompt_T:
                self.run.index.update(sequence.prompt_T, divergence)

    def _check_gap(self, sampled: Round, step: int, result: StepResult) -> None:
        """Raise RunError if the log-probabilities of rollout engine and learner differ by more than
        checks.logprob_gap at the first step after a push.
        """
        gap = result.metrics.get("logprob_gap", 0.0)
        allowed = self.run.config.checks.logprob_gap
        if step == sampled.steps.start and gap > allowed:
            raise RunError(
                f"{self.plan.title}, step {step}: rollout engine and learner differ by {gap:.2g} "
                f"nats a token, allowed are checks.logprob_gap = {allowed:g}; nothing of this "
                "night was applied"
            )

    def _index_prompts(self, sequences: list[TeacherSequence], limit: int) -> None:
        min_confidence = self.run.config.rehearsal.min_confidence
        prompts = []
        documents = {}
        for sequence in sequences:
            if sequence.origin == Origin.DELETED:
                continue
            length = sequence.x_length
            in_form = sequence.bare_T == self.run.codec.bare
            if length and in_form and sequence.answer_probability >= min_confidence:
                prompts.append(sequence.sequence_T[:length])
                if sequence.document:
                    documents[prompts[-1]] = sequence.document
        self.run.index.add(self.plan.night, prompts, limit, documents)

    def _sample(self, requests_N: list[Request], number: int) -> list[Sample | Failure]:
        """Sample from the student at temperature 1: equations 3 and 6 are expectations under its
        own distribution.
        """
        samples = self.run.sample(
            requests_N,
            STUDENT,
            self.run.task.max_new_tokens,
            1.0,
            **self.plan.journal_fields,
            round=number,
        )
        self.record.count_sampled(samples)
        return samples


def spans(plan: ConsolidationPlan, done: int, checkpoint_steps: int) -> list[list[NumberedSteps]]:
    """Split the steps after `done` into rounds, and the rounds into spans.

    The student is pushed after each round, a checkpoint written after each span but the last.
    `checkpoint_steps`: smallest number of steps of a span; 0: one span.
    """
    size = plan.steps_per_round
    starts = range(done, plan.steps, size)
    rounds = [(start // size, range(start, min(start + size, plan.steps))) for start in starts]
    rounds_per_span = math.ceil(checkpoint_steps / size) or len(rounds) or 1
    return [rounds[i : i + rounds_per_span] for i in range(0, len(rounds), rounds_per_span)]
