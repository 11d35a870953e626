"""Journal records of a consolidation: per optimizer step, per round, and a summary."""

from __future__ import annotations

import time

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Metrics, Sample
from sleep_rl.night.batches import Round
from sleep_rl.night.plan import ConsolidationPlan
from sleep_rl.session.context import RunContext


class ConsolidationRecord:
    """Counts tokens and seconds of one consolidation, and writes its journal records."""

    def __init__(self, run: RunContext, plan: ConsolidationPlan):
        self.run = run
        self.plan = plan
        self.began = time.monotonic()
        self.tokens_trained = 0.0
        self.tokens_sampled = 0.0
        self.idle_s = 0.0  # that the learner waited
        self.last: Metrics = {}  # of the newest step

    def count_sampled(self, samples_N: list[Sample | Failure]) -> None:
        """Add the tokens of the samples that did not fail."""
        done = [sample for sample in samples_N if not isinstance(sample, Failure)]
        self.tokens_sampled += sum(len(sample.completion_T) for sample in done)

    def step(self, step: int, steps: int, metrics: Metrics, rewards: Metrics) -> None:
        """Write the record `seed` of one of `steps` optimizer steps."""
        self.run.journal.log(
            "seed",
            **self.plan.journal_fields,
            step=step,
            steps=steps,
            **metrics,
            **rewards,
        )
        self.tokens_trained += metrics["tokens_trained"]
        self.last = {**metrics, **rewards}

    def round(
        self, finished: Round, trained_s: float, learner_waited_s: float, rollouts_waited_s: float
    ) -> None:
        """Write the record `flow` of one round: the versions of its samples, and who waited."""
        self.idle_s += learner_waited_s
        self.run.journal.log(
            "flow",
            **self.plan.journal_fields,
            round=finished.number,
            oldest=finished.oldest,
            newest=finished.newest,
            trained_s=trained_s,
            learner_waited_s=learner_waited_s,
            rollouts_waited_s=rollouts_waited_s,
            rewards_s=finished.scored_s,
        )

    def finish(self, steps: int) -> None:
        """Write the record `night`, the summary of the consolidation after `steps` steps."""
        seconds = time.monotonic() - self.began
        last = self.last
        self.run.journal.log(
            "night",
            **self.plan.journal_fields,
            steps=steps,
            seconds=seconds,
            tokens_sampled=self.tokens_sampled,
            tokens_trained=self.tokens_trained,
            loss=last.get("loss"),
            divergence=last.get("divergence", last.get("divergence_replay")),
            reward_mean=last.get("reward_mean"),
            learner_idle=self.idle_s / max(seconds, 1e-9),
        )

    def state(self) -> dict:
        """Return the counts as plain data for a checkpoint."""
        counts = [self.tokens_trained, self.tokens_sampled, self.idle_s]
        return {"counts": counts, "seconds": time.monotonic() - self.began, "last": self.last}

    def restore(self, state: dict) -> None:
        """Restore what `state` returned."""
        self.tokens_trained, self.tokens_sampled, self.idle_s = state["counts"]
        self.began -= state["seconds"]
        self.last = dict(state["last"])
