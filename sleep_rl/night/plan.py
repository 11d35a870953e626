"""What one consolidation is: who sends, how long it trains, and on which shares of rows."""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.records import Day
from sleep_rl.journal.text import night_label

CONTEXT = 0
"""The sender of a consolidation that moves the context window into level 1."""
DREAMS = -1
"""In place of a sender: what is learned are accepted dreams."""


@dataclass(frozen=True)
class ConsolidationPlan:
    """One consolidation, as the files of this folder need it. Constructors: the functions below."""

    night: int
    sender: int  # CONTEXT, the number of a memory level, or DREAMS
    source: str  # what is learned, in the journal: a day, "level 2", "other models", "dreams"
    steps: int  # optimizer steps
    steps_per_round: int  # between two pushes of the student
    replay_share: float  # of self-replay among the rows of a batch
    reading_rows: int  # per batch, beside its other rows
    on_policy: float  # lambda of equation 3
    peers: int = 0  # models of model.teachers that write instead of the smaller self

    @property
    def title(self) -> str:
        """Name for people, in progress bars and errors."""
        return night_label(self.night, self.sender)

    @property
    def journal_fields(self) -> dict:
        """What every journal record of the consolidation holds."""
        return {"night": self.night, "sender": self.sender, "day": self.source}


@dataclass(frozen=True)
class Shares:
    """Rows of one optimizer step, beside those of reading."""

    groups_new: int  # groups of student samples on new sequences
    groups_replay: int
    teacher_new: int  # the teacher's own sequences
    teacher_replay: int

    @staticmethod
    def of(config: Config, replay_share: float, on_policy: float) -> Shares:
        """Split sleep.batch by `on_policy` (lambda of equation 3) and `replay_share`."""
        batch = config.sleep.batch
        size = config.imitation.group_size
        groups = round(on_policy * batch / size)
        groups_replay = round(replay_share * groups)
        teacher = batch - groups * size
        replay = round(replay_share * batch) - groups_replay * size
        replay = min(max(replay, 0), teacher)
        return Shares(groups - groups_replay, groups_replay, teacher - replay, replay)


def plan_consolidation(
    config: Config, night: int, sender: int, steps: int, day: Day | None
) -> ConsolidationPlan:
    """Plan the consolidation of `sender` in a night; `day` is None in night 0, when the models of
    model.teachers write.
    """
    if sender != CONTEXT:
        return _plan(config, night, sender, f"level {sender}", steps=steps, replay_share=1.0)
    if day is None:
        peers = len(config.model.teachers)
        return _plan(
            config, night, sender, "other models", steps=steps, reading_rows=0, peers=peers
        )
    return _plan(config, night, sender, day.name, steps=steps)


def plan_dreams(config: Config, night: int) -> ConsolidationPlan:
    """Plan the learning of a night's accepted dreams.

    Nothing is sampled from the student, so it need not be pushed before the end: one round.
    """
    return _plan(
        config,
        night,
        DREAMS,
        "dreams",
        steps=config.dream.steps,
        steps_per_round=config.dream.steps,
        replay_share=config.dream.replay_share,
        reading_rows=0,
        on_policy=0.0,
    )


def _plan(config: Config, night: int, sender: int, source: str, **changed) -> ConsolidationPlan:
    """The config's values, but for those that `changed` names."""
    values = {
        "steps": config.sleep.steps,
        "steps_per_round": config.sleep.steps_per_round,
        "replay_share": config.replay.share,
        "reading_rows": config.reading.rows,
        "on_policy": config.objective.on_policy,
    }
    return ConsolidationPlan(night, sender, source, **values | changed)
