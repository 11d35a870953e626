"""The plan of one consolidation: its sender, optimizer steps and shares of rows."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import Day
from sleep_rl.journal.text import night_label

CONTEXT = 0
"""The sender of a consolidation that moves the context window into level 1."""
DREAMS = -1
"""In place of a sender: accepted dreams are learned."""


@dataclass(frozen=True)
class ConsolidationPlan:
    """The settings of one consolidation; created by `plan_consolidation` or `plan_dreams`."""

    night: int
    sender: int  # CONTEXT, the number of a memory level, or DREAMS
    source: str  # field `day` of journal records: a day, "level 2", "other models" or "dreams"
    steps: int  # optimizer steps
    steps_per_round: int  # between two pushes of the student
    replay_share: float  # of self-replay among the rows of a batch
    reading_rows: int  # per batch, in addition to sleep.batch
    on_policy: float  # lambda of equation 3
    unconditional: int  # sequences that the teacher generates without a document; each peer as many
    rehearsed: int  # prompts of past nights that the teacher answers, if there are any
    run_seed: int
    peers: int = 0  # number of model.teachers that generate the new sequences; 0: the sender does

    @property
    def title(self) -> str:
        """Name in progress bars and errors."""
        return night_label(self.night, self.sender)

    @property
    def journal_fields(self) -> dict:
        """Fields that every journal record of the consolidation has."""
        return {"night": self.night, "sender": self.sender, "day": self.source}

    def rng(self, purpose: str) -> random.Random:
        """Return a generator of random numbers for one purpose, such as "write": the same one for
        the same run.seed, night and sender.
        """
        return random.Random(f"{purpose} {self.run_seed} {self.night} {self.sender}")


@dataclass(frozen=True)
class Shares:
    """Rows of one optimizer step, without the reading rows."""

    groups_new: int  # groups of student samples on prefixes of new sequences
    groups_replay: int  # the same on self-replay
    teacher_new: int  # new teacher sequences
    teacher_replay: int  # teacher sequences of self-replay

    @staticmethod
    def of(config: Config, replay_share: float, on_policy: float) -> Shares:
        """Split sleep.batch by `on_policy` (lambda of equation 3) and `replay_share`, rounded to
        whole groups.
        """
        batch = config.sleep.batch
        size = config.imitation.group_size
        groups = min(round(on_policy * batch / size), batch // size)
        groups_replay = round(replay_share * groups)
        teacher = batch - groups * size
        replay = round(replay_share * batch) - groups_replay * size
        replay = min(max(replay, 0), teacher)
        return Shares(groups - groups_replay, groups_replay, teacher - replay, replay)


def plan_consolidation(
    config: Config, night: int, sender: int, steps: int, day: Day | None
) -> ConsolidationPlan:
    """Plan the consolidation of `sender` in a night.

    `day` is None in night 0, in which the models of model.teachers are seeded.
    """
    if sender != CONTEXT:
        return _plan(config, night, sender, f"level {sender}", steps=steps, replay_share=1.0)
    if day is None:
        peers = len(config.model.teachers)
        return _plan(
            config, night, sender, "other models", steps=steps, reading_rows=0, peers=peers
        )
    return _plan(config, night, sender, day.name, steps=steps)


def unrehearsed_share(config: Config, replay_share: float) -> float:
    """Return the share of self-replay in a night that has no rehearsed sequences."""
    if config.rehearsal.instead == "new":
        return replay_share * (1 - config.rehearsal.share)
    return replay_share


def fitted(plan: ConsolidationPlan, config: Config, new: int, rehearsed: int) -> ConsolidationPlan:
    """Return the plan fitted to the numbers of sequences that the teacher generated.

    Without rehearsed sequences their rows go where rehearsal.instead says. The steps are at most
    sleep.epochs over the new sequences, so that a day with few documents is not learned more often
    than one with many.
    """
    if plan.sender != CONTEXT or not new:
        return plan
    if not rehearsed:
        plan = replace(plan, replay_share=unrehearsed_share(config, plan.replay_share))
    if not config.sleep.epochs:
        return plan
    shares = Shares.of(config, plan.replay_share, plan.on_policy)
    per_step = max(shares.groups_new + shares.teacher_new, 1)
    return replace(plan, steps=min(plan.steps, math.ceil(config.sleep.epochs * new / per_step)))


def plan_dreams(config: Config, night: int) -> ConsolidationPlan:
    """Plan the training on a night's accepted dreams.

    It has one round, since the student does not sample and need not be pushed in between.
    """
    return _plan(
        config,
        night,
        DREAMS,
        "dreams",
        steps=config.dream.steps,
        steps_per_round=config.dream.steps,
        reading_rows=0,
        on_policy=0.0,
    )


def _plan(config: Config, night: int, sender: int, source: str, **changed) -> ConsolidationPlan:
    """Return a plan with the config's values, except for those in `changed`."""
    values = {
        "steps": config.sleep.steps,
        "steps_per_round": config.sleep.steps_per_round,
        "replay_share": config.replay.share,
        "reading_rows": config.reading.rows,
        "on_policy": config.objective.on_policy,
    } | changed
    return ConsolidationPlan(
        night,
        sender,
        source,
        **values,
        unconditional=config.replay.samples if values["replay_share"] > 0 else 0,
        rehearsed=config.rehearsal.samples if config.rehearsal.share else 0,
        run_seed=config.run.seed,
    )
