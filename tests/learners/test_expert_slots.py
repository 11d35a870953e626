"""Allocation of expert slots: which expert a night trains, and which are reset or merged."""

from dataclasses import replace

import pytest
import torch

from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.records import STUDENT
from sleep_rl.model.memory import ACTIVE, FRESH, LOCKED, level_number
from tests.learners.twins import CONFIG, ROWS


def unlocked(learner, number):
    """Return the number of unlocked consolidation experts of a level."""
    names = [name for name in learner.levels if level_number(name) == number]
    return sum(state != LOCKED for state in learner.levels[names[0]].state.tolist()[1:])


def test_the_sender_is_locked_in_the_student_and_reset_after_the_night(worker):
    learner = worker(kind="two levels")
    for _ in range(2):
        learner.open_night(1)
        for expert in learner.module.plastic:
            torch.nn.init.normal_(expert.w_out, std=0.1)
        learner.commit_night()
    assert (unlocked(learner, 1), unlocked(learner, 2)) == (2, 0)
    assert learner.open_night(2) == 1
    for name, level in learner.levels.items():
        sender = level_number(name) == 1
        # in the teacher the sender is unchanged
        assert level.state.tolist()[1:] == (
            [ACTIVE, ACTIVE, LOCKED, LOCKED] if sender else [LOCKED] * 4
        )
        assert level.patch.state_S.tolist()[1:] == (
            [LOCKED] * 4 if sender else [FRESH, LOCKED, LOCKED, LOCKED]
        )
    learner.seed_step(ROWS, 0, 4)
    learner.commit_night()
    assert (unlocked(learner, 1), unlocked(learner, 2)) == (0, 1)
    for name, level in learner.levels.items():
        if level_number(name) == 1:
            assert float(level.w_out[1:].abs().max()) == 0.0  # reset: the identity


@pytest.mark.parametrize(
    "on_full,choice,wanted",
    [
        ("merge", "next", [(1, 2), (2, 0), (3, 4)]),
        ("recycle_oldest", "next", [(1, 0), (2, 0), (3, 0)]),
        ("recycle_oldest", "next_or_newest", [(4, 0), (4, 0), (4, 0)]),
        ("error", "next_or_newest", [(4, 0), (4, 0), (4, 0)]),
        ("error", "reuse_newest", [(4, 0), (4, 0), (4, 0)]),
    ],
)
def test_on_full_decides_which_slots_a_full_level_assigns(on_full, choice, wanted, worker):
    """`wanted`: (assigned slot, merged slot) of the nights after the level was full; 1 is the
    oldest expert. A merge frees a slot, which the next night is assigned.
    """
    learner = worker(replace(CONFIG, sleep=replace(CONFIG.sleep, on_full=on_full)))
    for slot in (1, 2, 3, 4):
        assert learner.open_night(1) == slot
        for expert in learner.module.plastic:
            torch.nn.init.normal_(expert.w_out, std=0.1)
        learner.commit_night()
    assignments = []
    for _ in range(3):
        name, level = next(iter(learner.levels.items()))
        before = level.w_out.detach().clone()
        slot = learner.open_night(1, slot=choice)
        student = learner.export(STUDENT, 1, {}, STUDENT).tensors
        gone = [
            s for s in range(1, 5) if level.state[s] != LOCKED and level.patch.state_S[s] == LOCKED
        ]
        assignments.append((slot, gone[0] if gone else 0))
        begun = student[f"{name}.w_out#{slot}"]
        recycled = on_full == "recycle_oldest" and choice == "next"
        assert torch.equal(begun, torch.zeros_like(begun) if recycled else before[slot])
        learner.commit_night()
    assert assignments == wanted


def test_a_full_level_is_an_error_and_without_expansion_the_newest_is_trained_further(worker):
    learner = worker()
    for night in range(1, 5):
        assert learner.open_night(1) == night
        learner.commit_night()
    with pytest.raises(
        InputError, match=r"level 1: all 4 experts are in use and sleep.on_full is error"
    ):
        learner.open_night(1)
    learner = worker(replace(CONFIG, sleep=replace(CONFIG.sleep, expansion=False)))
    for _ in range(3):
        assert learner.open_night(1) == 1
        learner.commit_night()
