"""Which prompts are rehearsed (paper.md section 8): those that the teacher itself wrote in past
nights.

Only prompts are kept, no answers and no documents: in each night the teacher of that night answers
them anew. The rehearsal law is `RehearsalIndex.weights`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sleep_rl.contracts.records import Ids

# Share of a prompt's running mean that stays at each visit: about three visits count.
MEMORY = 0.7
# Least weight of a prompt, as a share of the mean divergence: none is ever left out for good.
LEAST_SHARE = 0.1
# Nats per token. Below it prompts are equally well taken over: where the student still is the
# teacher, rounding makes divergences of -1e-9.
ALIKE = 1e-3


@dataclass
class RehearsalIndex:
    """Self-written prompts x by night, and the student's last divergence on the answer of each.

    d(x) is a running mean, in nats per token of the answer y. A prompt that no student has met yet
    counts as the mean of the others.
    """

    by_divergence: bool = True  # False: every prompt has the same weight
    prompts: dict[Ids, int] = field(default_factory=dict)  # x -> night it was first written in
    divergence: dict[Ids, float] = field(default_factory=dict)  # x -> d(x)

    def add(self, night: int, prompts: list[Ids], most: int) -> None:
        """Add the `most` prompts that were written most often in a night, each once."""
        counts: dict[Ids, int] = {}
        for x in prompts:
            counts[x] = counts.get(x, 0) + 1
        for x in sorted(counts, key=lambda x: (-counts[x], x))[:most]:
            self.prompts.setdefault(x, night)

    def forget(self, night: int) -> None:
        """Drop the prompts of a night that was rolled back."""
        self.prompts = {x: first for x, first in self.prompts.items() if first != night}

    def update(self, x: Ids, divergence: float) -> None:
        """Move d(x) towards the divergence that was just measured."""
        before = self.divergence.get(x, divergence)
        self.divergence[x] = MEMORY * before + (1 - MEMORY) * divergence

    def weights(self, prompts: list[Ids]) -> list[float]:
        """Return the sampling weight of each prompt: max(d(x), LEAST_SHARE * mean d, ALIKE)."""
        if not self.by_divergence or not self.divergence:
            return [1.0] * len(prompts)
        mean = sum(self.divergence.values()) / len(self.divergence)
        return [max(self.divergence.get(x, mean), LEAST_SHARE * mean, ALIKE) for x in prompts]

    def draw(self, count: int, rng: random.Random) -> list[Ids]:
        """Draw the prompts that the teacher answers in a night; none while the index is empty.

        Each once, if `count` suffices for all, since a prompt without an answer is not rehearsed;
        the rest (or all, if it does not suffice) by weight, with replacement.
        """
        prompts = list(self.prompts)
        if not prompts:
            return []
        once = prompts if count >= len(prompts) else []
        return once + rng.choices(prompts, self.weights(prompts), k=count - len(once))

    def state(self) -> dict:
        """Return plain data for a checkpoint; `restore` takes it back."""
        return {
            "prompts": [[list(x), night] for x, night in self.prompts.items()],
            "divergence": [[list(x), value] for x, value in self.divergence.items()],
        }

    def restore(self, state: dict) -> None:
        """Take back what `state` returned."""
        self.prompts = {tuple(x): night for x, night in state["prompts"]}
        self.divergence = {tuple(x): value for x, value in state["divergence"]}
