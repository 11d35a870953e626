"""What to rehearse (paper.md section 8): the prompts that the teacher itself wrote in past nights.

Only prompts are kept, no answers and no documents: in each night the teacher of that night answers
them anew.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sleep_rl.contracts.records import Ids

MEMORY = 0.7  # of a prompt's mean divergence, per visit
ALIKE = 1e-3  # nats per token: below this prompts are equally well taken over


@dataclass
class RehearsalIndex:
    """Self-written prompts x by night, and how far the student was from the teacher's answer when
    it last saw each.

    A prompt that no student has met yet counts as the mean of the others, so it is neither favoured
    nor forgotten.
    """

    by_divergence: bool = True  # False: every prompt alike
    prompts: dict[Ids, int] = field(default_factory=dict)  # x -> night it was first written in
    divergence: dict[Ids, float] = field(default_factory=dict)  # x -> nats per token of y

    def add(self, night: int, prompts: list[Ids], most: int) -> None:
        """Takes in the `most` prompts that were written most often, each once."""
        counts: dict[Ids, int] = {}
        for x in prompts:
            counts[x] = counts.get(x, 0) + 1
        for x in sorted(counts, key=lambda x: (-counts[x], x))[:most]:
            self.prompts.setdefault(x, night)

    def forget(self, night: int) -> None:
        """Drops the prompts of a night that was rolled back."""
        self.prompts = {x: first for x, first in self.prompts.items() if first != night}

    def learned(self, x: Ids, divergence: float) -> None:
        """The student's divergence on the answer of x, as just measured."""
        before = self.divergence.get(x, divergence)
        self.divergence[x] = MEMORY * before + (1 - MEMORY) * divergence

    def state(self) -> dict:
        """Plain data for a checkpoint; `restore` takes it back."""
        return {
            "prompts": [[list(x), night] for x, night in self.prompts.items()],
            "divergence": [[list(x), value] for x, value in self.divergence.items()],
        }

    def restore(self, state: dict) -> None:
        self.prompts = {tuple(x): night for x, night in state["prompts"]}
        self.divergence = {tuple(x): value for x, value in state["divergence"]}

    def weights(self, prompts: list[Ids]) -> list[float]:
        """How much each prompt is to be drawn: in proportion to its divergence, but no less than a
        tenth of the mean (or
        ALIKE: where the student still is the teacher, at temperature 1, rounding makes divergences
        of -1e-9).
        """
        if not self.by_divergence or not self.divergence:
            return [1.0] * len(prompts)
        mean = sum(self.divergence.values()) / len(self.divergence)
        return [max(self.divergence.get(x, mean), 0.1 * mean, ALIKE) for x in prompts]

    def draw(self, count: int, rng: random.Random) -> list[Ids]:
        """Prompts to be answered in a night: each once, if `count` is enough for all, since what no
        answer is written to is not rehearsed; the rest, or of too many a part, by weight. None
        while the index is empty.
        """
        prompts = list(self.prompts)
        if not prompts:
            return []
        once = prompts if count >= len(prompts) else []
        return once + rng.choices(prompts, self.weights(prompts), k=count - len(once))
