"""The edit distance reward r_abs: Levenshtein similarity of token ids (equation 5)."""

from __future__ import annotations

from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Pair
from sleep_rl.rewards import levenshtein_reward


class LevenshteinReward:
    """Implements roles.Reward: r_abs of equation 5.

    `z0`: largest distance with a reward above 0; below 1 a share of the longer sequence, else a
    number of tokens.
    """

    def __init__(self, z0: float):
        self._z0 = z0

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one value in [0, 1] per pair, in order."""
        return [levenshtein_reward(pair.student_T, pair.teacher_T, self._z0) for pair in pairs_N]

    def close(self) -> None:
        """Do nothing: no model is held."""
