"""A crew of two distributions over three tokens, whose divergence can be computed by hand."""

from __future__ import annotations

import math
import random

from sleep_rl.contracts.records import CHECKPOINT
from tests.fakes.crew import sampled_ids

BASE = {7: 0.5, 8: 0.3, 9: 0.2}
NOW = {7: 0.2, 8: 0.3, 9: 0.5}
"""Distributions of every token under the base, and after a night."""


class Dice:
    """A crew whose tokens are independent of what stands before them: the untouched base samples
    them from BASE, and every other state has NOW.
    """

    def sample(self, requests_N, name, how):
        assert name == CHECKPOINT and how.temperature == 1.0 and how.min_p == 0.0
        return [self._sample(request, how.max_tokens) for request in requests_N]

    def _sample(self, request, count):
        rng = random.Random(request.seed)
        ids = tuple(rng.choices(list(BASE), list(BASE.values()), k=count))
        return sampled_ids(request, CHECKPOINT, ids, reason="length")

    def logprobs(self, requests_N, name):
        law = BASE if name == CHECKPOINT else NOW
        return [tuple(math.log(law[token]) for token in r.prompt_T) for r in requests_N]
