"""Sampling from the teachers of one consolidation."""

from __future__ import annotations

from collections.abc import Callable

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import TEACHER, Ids, Request, Sample
from sleep_rl.night.plan import ConsolidationPlan
from sleep_rl.night.record import ConsolidationRecord
from sleep_rl.session.context import RunContext


class TeacherSampler:
    """Samples from a teacher for one consolidation, and counts tokens and progress."""

    def __init__(
        self,
        run: RunContext,
        plan: ConsolidationPlan,
        record: ConsolidationRecord,
        tick: Callable[..., None],
    ):
        self.run = run
        self.plan = plan
        self.record = record
        self.tick = tick

    def __call__(
        self,
        requests_N: list[Request],
        *,
        name: str = TEACHER,
        temperature: float | None = None,
        min_p: float = 0.0,
        tokens: int | None = None,
        stop: Ids = (),
        plain: bool = False,
        shown: bool = True,
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, from state `name`.

        `temperature`: None for generation.temperature; `tokens`: longest completion, None for the
        task's max_new_tokens; `stop`: tokens besides eos that end a completion; `plain`: whether
        the text is no answer, which task.stop does not end; `shown`: whether the samples count in
        the progress bar.
        """
        samples = self.run.sample(
            requests_N,
            name,
            tokens or self.run.task.max_new_tokens,
            self.run.config.generation.temperature if temperature is None else temperature,
            min_p,
            stop,
            plain=plain,
            **self.plan.journal_fields,
            round=0,
        )
        self.record.count_sampled(samples)
        self.tick(len(samples) if shown else 0)
        return samples
