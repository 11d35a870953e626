"""One consolidation (paper.md section 3), from D to the trained expert.

The arrows, one file each: `generation` document -> sequences of the teacher; `continuations` prefix
-> samples of the student, rewards; `rows` and `continuations` sequences -> training rows; `batches`
rows -> batch; `learners/` batch -> loss -> expert. `pipeline` runs rollouts beside the learner.
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
from sleep_rl.night.plan import CONTEXT, ConsolidationPlan
from sleep_rl.night.progress import load_progress, restore_samplers, save_progress
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.night.sequences import NightData, TeacherSequence, prompt_length
from sleep_rl.session.context import RunContext


class Consolidation:
    """The training of one consolidation on its data. Made by `begin` or `resume`."""

    def __init__(
        self,
        run: RunContext,
        plan: ConsolidationPlan,
        rng: random.Random,
        record: ConsolidationRecord,
        data: NightData,
        done: int = 0,
    ):
        """`done`: optimizer steps already taken, by an earlier process."""
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
        """Push teacher and student to the rollout workers, and let the teacher write D.

        Behind the learner's `open_night`. `day` is None where no document is in context; `lessons`
        are texts of accepted dreams.
        """
        rng = _rng(run, plan)
        record = ConsolidationRecord(run, plan)
        run.crew.push(TEACHER, TEACHER)
        run.crew.push(STUDENT, STUDENT)
        data = generate(run, plan, day, rng, record, lessons or [])
        return cls(run, plan, rng, record, data)

    @classmethod
    def resume(cls, run: RunContext, plan: ConsolidationPlan) -> Consolidation | None:
        """Restore the checkpoint of an interrupted consolidation; None if there is none.

        Behind the learner's `open_night`. Raises RunError if it belongs to another one.
        """
        rng = _rng(run, plan)
        record = ConsolidationRecord(run, plan)
        saved = load_progress(run, plan, rng, record)
        if saved is None:
            return None
        consolidation = cls(run, plan, rng, record, saved.data, saved.step)
        restore_samplers(consolidation.composer, saved.left)
        run.crew.restore_progress(saved.learner, saved.step, plan.steps)
        return consolidation

    def train(self) -> None:
        """Minimise L_KS over the new expert (section 3 b), round by round of y ~ S(.|x) and
        r(y).
        """
        plan = self.plan
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
            tick(self.done)
            # Between two spans the queue is empty and every state is pushed.
            for span in spans(plan, self.done, self.run.config.run.checkpoint_steps):
                with closing(run_rounds(flow, span, self.run.config.sleep.lag)) as rounds:
                    for sampled in rounds:
                        self._train_round(sampled, tick)
                last = span[-1][1].stop
                if last < plan.steps:
                    save_progress(self.run, self.rng, self.composer, self.record, self.data, last)

    def finish(self) -> None:
        """Write the journal's summary, and index the night's own prompts for rehearsal."""
        rehearsal = self.run.config.rehearsal
        if self.plan.sender <= CONTEXT:  # else the new sequences were only read
            self._index_prompts(self.data.new, rehearsal.prompts)
        self._index_prompts(self.data.unconditional, rehearsal.unconditional_prompts)
        self.record.finish()

    def _train_round(self, sampled: Round, tick: Callable[..., None]) -> None:
        learn = self.run.crew.learn
        for step, batch in zip(sampled.steps, sampled.batches, strict=True):
            result = learn.seed_step(batch.rows, step, self.plan.steps)
            self._update_priorities(sampled, step, result)
            self._check_gap(sampled, step, result)
            self.record.step(step, result.metrics, sampled.rewards)
            tick(1, f"loss {result.metrics['loss']:.3f}")

    def _update_priorities(self, sampled: Round, step: int, result: StepResult) -> None:
        """Update each rehearsed prompt's priority with its latest teacher-student divergence."""
        batch = sampled.batches[step - sampled.steps.start]
        divergence_N = result.divergence_N[batch.first :]
        # The reading rows behind the sequences have a divergence, too, which nothing needs.
        for sequence, divergence in zip(batch.sequences, divergence_N, strict=False):
            if sequence.prompt_T:
                self.run.index.update(sequence.prompt_T, divergence)

    def _check_gap(self, sampled: Round, step: int, result: StepResult) -> None:
        """Raise RunError if sampler and learner differ at the first step behind a push."""
        gap = result.metrics.get("logprob_gap", 0.0)
        allowed = self.run.config.checks.logprob_gap
        if step == sampled.steps.start and gap > allowed:
            raise RunError(
                f"{self.plan.title}, step {step}: sampler and learner differ by {gap:.2g} nats a "
                f"token, allowed are checks.logprob_gap = {allowed:g}; nothing of this night was "
                "applied"
            )

    def _index_prompts(self, sequences: list[TeacherSequence], most: int) -> None:
        confident = self.run.config.rehearsal.min_confidence
        prompts = []
        for sequence in sequences:
            length = prompt_length(self.run.codec, sequence)
            if length and sequence.answer_probability >= confident:
                prompts.append(sequence.sequence_T[:length])
        self.run.index.add(self.plan.night, prompts, most)

    def _sample(self, requests_N: list[Request], number: int) -> list[Sample | Failure]:
        """Sample from the student's own distribution: equations 3 and 6 are expectations under
        it.
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


def _rng(run: RunContext, plan: ConsolidationPlan) -> random.Random:
    return random.Random(f"night {run.config.run.seed} {plan.night} {plan.sender}")


def spans(plan: ConsolidationPlan, done: int, checkpoint_steps: int) -> list[list[NumberedSteps]]:
    """Return the steps that are left, in rounds (after each the student is pushed), and these in
    spans (after each but the last a checkpoint is written).

    `checkpoint_steps`: least steps of a span; 0: one span.
    """
    size = plan.steps_per_round
    starts = range(done, plan.steps, size)
    rounds = [(start // size, range(start, min(start + size, plan.steps))) for start in starts]
    rounds_per_span = math.ceil(checkpoint_steps / size) or len(rounds) or 1
    return [rounds[i : i + rounds_per_span] for i in range(0, len(rounds), rounds_per_span)]
