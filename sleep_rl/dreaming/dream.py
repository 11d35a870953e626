"""The record of a dream with its results, and its conversion to plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sleep_rl.contracts.records import Ids

# Tags of memory states in the learner: the dreaming policy's, and the model's during dreaming.
DREAMER = "dreamer"
SELF = "self"


@dataclass(frozen=True)
class Dream:
    """A dream with the results of its steps; None: the dream did not reach that step.

    `reason`: why the dream was dropped; empty: it was not.
    """

    task: str  # id
    number: int  # among the dreams of its task, from 0
    seed: int  # of its sampling
    expert_seed: int | None  # of the random experts; None: without random experts
    experts: Mapping[str, int]  # level name -> slot of the random expert
    ids: Ids  # with eos
    text: str
    logprob: float  # mean over its tokens, nats
    reason: str = ""
    importance: float | None = None  # omega
    kept: bool = False  # selected for trials
    tau_before: float | None = None  # of the un-updated model
    taus: tuple[float, ...] = ()  # of the copies, one per training seed
    reward: int | None = None  # equation 7
    held_out: float | None = None  # gain on the training seed that the reward does not use

    @property
    def gain(self) -> float | None:
        """Mean tau of the copies minus tau of the un-updated model."""
        if not self.taus:
            return None
        return math.fsum(self.taus) / len(self.taus) - self.tau_before


def to_plain(dreams: list[Dream]) -> list[dict]:
    """Return dreams as plain data, as a stage must return them."""
    return [asdict(dream) for dream in dreams]


def from_plain(rows: list[dict]) -> list[Dream]:
    """Return the dreams that `to_plain` was given."""
    return [Dream(**{**row, "ids": tuple(row["ids"]), "taus": tuple(row["taus"])}) for row in rows]
