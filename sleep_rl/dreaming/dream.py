"""A dream and all that became of it, as a record and as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sleep_rl.contracts.records import Ids

# Tags of memory states in the learner: the dreaming policy's, and the model's own meanwhile.
DREAMER = "dreamer"
SELF = "self"


@dataclass(frozen=True)
class Dream:
    """A dream. None: it did not come to that step. `reason`: why it was given up."""

    task: str
    number: int  # of its task, from 0
    seed: int  # of its sampling
    expert_seed: int | None  # of the random experts; None: there were none
    experts: Mapping[str, int]  # level name -> slot that its router activated besides
    ids: Ids  # what was written, with eos
    text: str
    logprob: float  # mean over its tokens, nats
    reason: str = ""
    importance: float | None = None
    kept: bool = False
    tau_before: float | None = None  # of the un-updated model
    taus: tuple[float, ...] = ()  # of the copies, one per training seed
    reward: int | None = None  # equation 7
    held_out: float | None = None  # gain on the seed that the reward never saw

    @property
    def gain(self) -> float | None:
        """Mean tau of the copies over the un-updated model's."""
        if not self.taus:
            return None
        return math.fsum(self.taus) / len(self.taus) - self.tau_before


def to_plain(dreams: list[Dream]) -> list[dict]:
    """Return plain data, which is what a stage may return."""
    return [asdict(dream) for dream in dreams]


def from_plain(rows: list[dict]) -> list[Dream]:
    """Return what `to_plain` was given."""
    return [Dream(**{**row, "ids": tuple(row["ids"]), "taus": tuple(row["taus"])}) for row in rows]
