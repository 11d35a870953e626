"""Rewards: equations 4 and 5, and the group-relative advantage."""

from __future__ import annotations

import math
import random

import pytest
import torch

from sleep_rl.contracts.errors import Failure
from sleep_rl.rewards import group_advantage, levenshtein_reward, mixture


def slow_reward(student, teacher, z0: float) -> float:
    """Equation 5 in the paper's indices: z_ij is the distance of the first i and j tokens."""
    z = {(i, 0): i for i in range(len(student) + 1)} | {(0, j): j for j in range(len(teacher) + 1)}
    for i in range(1, len(student) + 1):
        for j in range(1, len(teacher) + 1):
            same = student[i - 1] == teacher[j - 1]
            z[i, j] = min(z[i - 1, j] + 1, z[i, j - 1] + 1, z[i - 1, j - 1] + (not same))
    distance = z[len(student), len(teacher)]
    longest = max(len(student), len(teacher))
    if longest == 0:
        return 1.0
    threshold = z0 * longest if z0 < 1 else z0
    return 1 - distance / longest if distance <= threshold else 0.0


def test_levenshtein_reward_equals_equation_5():
    random_state = random.Random(0)
    for _ in range(200):
        student, teacher = (
            [random_state.randrange(6) for _ in range(random_state.randrange(12))] for _ in range(2)
        )
        z0 = random_state.choice([0.1, 0.25, 0.5, 0.75, 0.99, 1, 2, 3, 5, 100])
        assert levenshtein_reward(student, teacher, z0) == slow_reward(student, teacher, z0)


@pytest.mark.parametrize(
    "student, teacher, z0, expected",
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), 0.5, 1.0),
        ((1, 2, 3, 4), (1, 2, 3, 5), 0.5, 0.75),
        ((1, 2, 3, 4), (1, 2, 5, 6), 0.5, 0.5),  # z = 2 = 0.5 * 4: the boundary counts
        ((1, 2, 3, 4), (1, 2, 5, 6), 0.49, 0.0),
        ((1, 2, 3, 4), (1, 2, 5, 6), 2, 0.5),  # an absolute count, compared with the raw distance
        ((1, 2, 3, 4), (1, 2, 5, 6), 1, 0.0),  # 1 is a count, not a share
        ((1, 2), (1, 2, 3, 4), 2.0, 0.5),
        ((), (), 0.5, 1.0),
        ((), (1,), 0.5, 0.0),
        ((), (1,), 1, 0.0),
        ((1,), (), 0.99, 0.0),
        ((256, 70000), (256, 70000), 0.5, 1.0),  # ids beyond a byte
    ],
)
def test_levenshtein_reward_by_hand(student, teacher, z0, expected):
    assert levenshtein_reward(student, teacher, z0) == expected


def test_mixture_by_hand():
    assert mixture(1.0, 0.5, 0.25) == 0.25 + 0.75 * 0.5
    assert mixture(1.0, 0.5, 1.0) == 1.0 and mixture(0.0, 0.5, 0.0) == 0.5
    failure = Failure("late")
    assert mixture(failure, 0.5, 0.25) is failure
    assert mixture(failure, 0.5, 0.0) == 0.5  # a part with weight 0 cannot fail


def slow_advantage(rewards) -> list[float | None]:
    scored = torch.tensor([r for r in rewards if not isinstance(r, Failure)], dtype=torch.float64)
    if len(scored) < 2:
        return [None for _ in rewards]
    divisor = scored.std().item() + 1e-6
    return [
        None if isinstance(r, Failure) else (r - scored.mean().item()) / divisor for r in rewards
    ]


def test_group_advantage_equals_its_definition():
    random_state = random.Random(1)
    for _ in range(200):
        rewards = [
            Failure("x") if random_state.random() < 0.3 else random_state.random()
            for _ in range(random_state.randrange(1, 7))
        ]
        for got, expected in zip(group_advantage(rewards), slow_advantage(rewards), strict=True):
            assert (
                got == expected if expected is None else math.isclose(got, expected, abs_tol=1e-9)
            )


def test_group_advantage_by_hand():
    assert group_advantage([0.0, 1.0, 2.0]) == pytest.approx([-1.0, 0.0, 1.0], abs=1e-5)
    late = group_advantage([0.0, Failure("late"), 1.0])
    assert late[1] is None and late[::2] == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-5)
    assert group_advantage([0.5, 0.5, 0.5]) == [0.0, 0.0, 0.0]
    assert max(map(abs, group_advantage([0.1] * 3))) < 1e-9
    assert group_advantage([Failure("a"), 1.0]) == [None, None]
    assert group_advantage([]) == []
