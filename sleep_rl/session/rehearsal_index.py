"""The index of prompts for rehearsal (paper.md section 8): those that the teacher generated in past
nights.

It holds prompts only, no answers and no documents: the teacher of each night answers them anew. How
often each is rehearsed is decided by `RehearsalIndex.weights`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sleep_rl.contracts.records import Ids

# Decay of a prompt's moving average per update: it averages over about three updates.
DECAY = 0.7
# Smallest weight of a prompt, as a share of the mean divergence: each stays in rehearsal.
MIN_SHARE = 0.1
# Nats per token; smaller divergences are treated as equal. Where student and teacher are still the
# same model, rounding gives divergences such as -1e-9.
MIN_DIVERGENCE = 1e-3


@dataclass
class RehearsalIndex:
    """Generated prompts x with their night, and the student's divergence d(x) on their answers.

    d(x) is an exponential moving average, in nats per token of the answer y. A prompt without a
    measurement has the mean of the others.
    """

    by_divergence: bool = True  # False: every prompt has the same weight
    prompts: dict[Ids, int] = field(default_factory=dict)  # x -> night of its first generation
    divergence: dict[Ids, float] = field(default_factory=dict)  # x -> d(x)

    def add(self, night: int, prompts: list[Ids], limit: int) -> None:
        """Add the prompts of a night, each once: at most `limit`, the most frequent ones."""
        counts: dict[Ids, int] = {}
        for x in prompts:
            counts[x] = counts.get(x, 0) + 1
        for x in sorted(counts, key=lambda x: (-counts[x], x))[:limit]:
            self.prompts.setdefault(x, night)

    def forget(self, night: int) -> None:
        """Drop the prompts of a night that was rolled back."""
        self.prompts = {x: first for x, first in self.prompts.items() if first != night}

    def update(self, x: Ids, divergence: float) -> None:
        """Update the moving average d(x) with a new measurement, in nats per token."""
        before = self.divergence.get(x, divergence)
        self.divergence[x] = DECAY * before + (1 - DECAY) * divergence

    def weights(self, prompts: list[Ids]) -> list[float]:
        """Return the sampling weight of each prompt: max(d(x), MIN_SHARE * mean d,
        MIN_DIVERGENCE).
        """
        if not self.by_divergence or not self.divergence:
            return [1.0] * len(prompts)
        mean = sum(self.divergence.values()) / len(self.divergence)
        least = max(MIN_SHARE * mean, MIN_DIVERGENCE)
        return [max(self.divergence.get(x, mean), least) for x in prompts]

    def draw(self, count: int, rng: random.Random) -> list[Ids]:
        """Draw `count` prompts for the teacher to answer in a night; none if the index is empty.

        If `count` is at least the number of prompts, each is drawn once and the remainder by weight
        with replacement; otherwise all are drawn by weight with replacement.
        """
        prompts = list(self.prompts)
        if not prompts:
            return []
        once = prompts if count >= len(prompts) else []
        return once + rng.choices(prompts, self.weights(prompts), k=count - len(once))

    def state(self) -> dict:
        """Return the index as plain data for a checkpoint."""
        return {
            "prompts": [[list(x), night] for x, night in self.prompts.items()],
            "divergence": [[list(x), value] for x, value in self.divergence.items()],
        }

    def restore(self, state: dict) -> None:
        """Restore what `state` returned."""
        self.prompts = {tuple(x): night for x, night in state["prompts"]}
        self.divergence = {tuple(x): value for x, value in state["divergence"]}
