"""Imitation rewards (paper.md equations 4 and 5) and their group-relative advantage.

Suffixes: `_T` tokens of one continuation, `_G` completions of one prefix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from sleep_rl.contracts.errors import Failure


def levenshtein_reward(student_T: Sequence[int], teacher_T: Sequence[int], z0: float) -> float:
    """Return the reward of equation 5: 1 - z / max(|d^|, |d|) if the Levenshtein distance z of the
    token ids is at most z0, else 0.

    z0 >= 1 is a number of tokens, as in the paper; z0 < 1 is a share of the longer sequence, so
    that it does not depend on the length. Two empty sequences have reward 1.
    """
    longest = max(len(student_T), len(teacher_T))
    if longest == 0:
        return 1.0
    z = Levenshtein.distance(student_T, teacher_T)
    limit = z0 if z0 >= 1 else z0 * longest
    return 1.0 - z / longest if z <= limit else 0.0


def mixture(r_sem: float | Failure, r_abs: float, gamma: float) -> float | Failure:
    """Return the reward of equation 4: gamma r_sem + (1 - gamma) r_abs.

    It is the Failure of a failed semantic reward if gamma is above 0.
    """
    if gamma == 0:
        return r_abs
    return r_sem if isinstance(r_sem, Failure) else gamma * r_sem + (1 - gamma) * r_abs


def group_advantage(rewards_G: Sequence[float | Failure]) -> list[float | None]:
    """Return (reward - mean) / standard deviation (n - 1) of each member of a group, as in GRPO.

    A Failure gets None and is excluded from mean and deviation. With fewer than two scored members
    all are None. Equal rewards give zeros.
    """
    scored = [r for r in rewards_G if not isinstance(r, Failure)]
    if len(scored) < 2:
        return [None] * len(rewards_G)
    mean = math.fsum(scored) / len(scored)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in scored) / (len(scored) - 1))
    return [None if isinstance(r, Failure) else (r - mean) / (deviation + 1e-6) for r in rewards_G]
