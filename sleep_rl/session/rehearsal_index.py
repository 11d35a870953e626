"""The index of prompts for rehearsal (paper.md section 8): those that the teacher generated in past
nights.

It holds prompts only, no answers and no texts of documents: the teacher of each night answers them
anew. How often each is rehearsed is decided by `RehearsalIndex.weights`. A prompt whose document
is superseded is retired.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
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
    documents: dict[Ids, str] = field(default_factory=dict)  # x -> id of its newest document
    # x -> (night in which it was retired, its night, its document); of the newest such night
    retired: dict[Ids, tuple[int, int, str]] = field(default_factory=dict)

    def add(
        self, night: int, prompts: list[Ids], limit: int, documents: Mapping[Ids, str] | None = None
    ) -> None:
        """Add the prompts of a night, each once: at most `limit`, the most frequent ones.

        `documents`: x -> id of the document that it asks about, where there is one.
        """
        counts: dict[Ids, int] = {}
        for x in prompts:
            counts[x] = counts.get(x, 0) + 1
        for x in sorted(counts, key=lambda x: (-counts[x], x))[:limit]:
            self.prompts.setdefault(x, night)
            if documents and x in documents:
                self.documents[x] = documents[x]

    def retire(self, night: int, prompts: Iterable[Ids]) -> None:
        """Drop prompts about superseded documents, in the night that unlearns them."""
        gone = {x: (night, self.prompts[x], self.documents[x]) for x in prompts}
        self.retired = gone or self.retired
        for x in gone:
            del self.prompts[x]
            del self.documents[x]
            self.divergence.pop(x, None)

    def roll_back(self, night: int) -> None:
        """Drop the prompts of a night that was rolled back, and put back those that it retired."""
        kept = {x: first for x, first in self.prompts.items() if first != night}
        self.documents = {x: name for x, name in self.documents.items() if x in kept}
        for x, (retired_in, first, document) in self.retired.items():
            if retired_in == night:
                kept[x] = first
                self.documents[x] = document
        self.prompts = kept
        self.retired = {}

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

    def draw(self, count: int, rng: random.Random, without: Collection[Ids] = ()) -> list[Ids]:
        """Draw `count` prompts, not among `without`, for the teacher to answer in a night; none if
        there are none.

        If `count` is at least the number of prompts, each is drawn once and the remainder by weight
        with replacement; otherwise all are drawn by weight with replacement.
        """
        prompts = [x for x in self.prompts if x not in without]
        if not prompts:
            return []
        once = prompts if count >= len(prompts) else []
        return once + rng.choices(prompts, self.weights(prompts), k=count - len(once))

    def state(self) -> dict:
        """Return the index as plain data for a checkpoint."""
        return {
            "prompts": [[list(x), night] for x, night in self.prompts.items()],
            "divergence": [[list(x), value] for x, value in self.divergence.items()],
            "documents": [[list(x), name] for x, name in self.documents.items()],
            "retired": [[list(x), list(values)] for x, values in self.retired.items()],
        }

    def restore(self, state: dict) -> None:
        """Restore what `state` returned; states of earlier versions have no documents."""
        self.prompts = {tuple(x): night for x, night in state["prompts"]}
        self.divergence = {tuple(x): value for x, value in state["divergence"]}
        self.documents = {tuple(x): name for x, name in state.get("documents", ())}
        self.retired = {tuple(x): tuple(values) for x, values in state.get("retired", ())}
