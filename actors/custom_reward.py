"""The actor of a user-defined semantic reward: r_sem of equation 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from actors.semantic_reward import PolicyText
from sleep_rl.contracts.errors import Failure, one_line
from sleep_rl.contracts.records import Pair
from sleep_rl.tasks.plugin import instantiate

REQUIRED_METHODS = ("score",)
"""Of the user's class."""


class CustomReward:
    """Implements roles.Reward with a user-defined class.

    Its `score` takes a list of (student's text, teacher's text) and returns a number from 0 to 1
    or a Failure for each, in order. `target`: import path of the class; `options`: its arguments,
    see sleep_rl.tasks.plugin; `tokenizer_path`: the policy's tokenizer. Raises InputError when the
    class cannot be instantiated.
    """

    def __init__(self, target: str, options: dict[str, Any], tokenizer_path: str):
        self._target = target
        self._custom = instantiate(target, options, "reward.target", REQUIRED_METHODS)
        self._policy = PolicyText(tokenizer_path)

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one value in [0, 1] or Failure per pair, in order.

        Any other value of the class is a Failure; an exception of the class fails all pairs.
        """
        decoded_N = [self._policy.decode(pair) for pair in pairs_N]
        texts = [decoded for decoded in decoded_N if not isinstance(decoded, Failure)]
        scores = iter(self._scores(texts))
        return [decoded if isinstance(decoded, Failure) else next(scores) for decoded in decoded_N]

    def _scores(self, texts: list[tuple[str, str]]) -> Sequence[float | Failure]:
        """Return the class's scores, validated, one per pair of texts."""
        if not texts:
            return []
        try:
            values = list(self._custom.score(texts))
        # Boundary: the user's code may raise anything; the pairs of the call have no reward then.
        except Exception as error:  # noqa: BLE001
            reason = f"raised {type(error).__name__}: {one_line(error, limit=160)}"
            return [self._failure(reason)] * len(texts)
        if len(values) != len(texts):
            return [self._failure(f"returned {len(values)} values for {len(texts)} pairs")] * len(
                texts
            )
        return [self._validated(value) for value in values]

    def _validated(self, value: Any) -> float | Failure:
        if isinstance(value, Failure):
            return value
        if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1:
            return float(value)
        return self._failure(f"returned {value!r:.40}, allowed is a number from 0 to 1")

    def _failure(self, reason: str) -> Failure:
        return Failure(f"{self._target} {reason}", "custom")

    def close(self) -> None:
        """Call the class's `close`, if it has one."""
        if hasattr(self._custom, "close"):
            self._custom.close()
