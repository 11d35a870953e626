"""A semantic reward of the user's own, as an actor: r_sem of equation 4 from two texts."""

from __future__ import annotations

import math
from typing import Any

from actors.semantic_reward import PolicyText
from sleep_rl.contracts.errors import Failure, one_line
from sleep_rl.contracts.records import Pair
from sleep_rl.tasks.plugin import made

NEEDED = ("score",)


class CustomReward:
    """Implements contracts.Reward around a class whose `score` takes a list of (student's text,
    teacher's text) and returns a number from 0 to 1 for each, in order, or a Failure. `target`,
    `options`: see sleep_rl.tasks.plugin; `tokenizer_path`: the policy's tokenizer. Raises InputError when
    the class cannot be made.
    """

    def __init__(self, target: str, options: dict[str, Any], tokenizer_path: str):
        self._target, self._own = target, made(target, options, "reward.target", NEEDED)
        self._policy = PolicyText(tokenizer_path)

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """One value in [0, 1] or Failure per pair, in order. What is no such value is a Failure;
        what the class raises fails every pair of the call.
        """
        both_N = [self._policy.both(pair) for pair in pairs_N]
        texts = [both for both in both_N if not isinstance(both, Failure)]
        try:
            values = list(self._own.score(texts)) if texts else []
        except Exception as error:
            # the user's own code; the call's pairs have no reward, and it is said why
            failure = Failure(
                f"{self._target} raised {type(error).__name__}: {one_line(error, limit=160)}",
                "custom",
            )
            return [both if isinstance(both, Failure) else failure for both in both_N]
        if len(values) != len(texts):
            failure = Failure(
                f"{self._target} gave {len(values)} values for {len(texts)} pairs", "custom"
            )
            return [both if isinstance(both, Failure) else failure for both in both_N]
        rest = iter(values)
        return [both if isinstance(both, Failure) else self._checked(next(rest)) for both in both_N]

    def _checked(self, value: Any) -> float | Failure:
        if isinstance(value, Failure):
            return value
        if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1:
            return float(value)
        return Failure(
            f"{self._target} gave {value!r:.40}, allowed is a number from 0 to 1", "custom"
        )

    def close(self) -> None:
        """Lets the class end, if it wants to."""
        if hasattr(self._own, "close"):
            self._own.close()
