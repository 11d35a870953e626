"""The learner, rows and rewards against `tests/reference_night.py`."""

import math
import random

import pytest
import torch

from sleep_rl.contracts.records import Document, Sample, TrainingRow
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import BASE_SLOT, FRESH, LOCKED, PARTS, level_number
from sleep_rl.night.continuations import cut, reward_pairs, student_rows
from sleep_rl.night.rows import teacher_rows
from sleep_rl.night.sequences import Origin, TeacherSequence
from sleep_rl.rewards import group_advantage, levenshtein_reward
from tests.fakes.configs import changed
from tests.learners.twins import CONFIG, DOCUMENTS, ROWS
from tests.reference_night import Row, advantages, night, reward, wake

STEPS = 4


def key_of(name):
    """Return (layer, level) of a level's name."""
    return int(name.split(".")[2]), level_number(name)


def slots_of(learner, wanted):
    """Return (layer, level) -> slot -> copy of the expert, for slots with wanted(slot, state)."""
    return {
        key_of(name): {
            slot: {part: getattr(level, part)[slot].detach().clone() for part in PARTS}
            for slot, state in enumerate(level.state.tolist())
            if wanted(slot, state)
        }
        for name, level in learner.levels.items()
    }


def reference(rows):
    return [
        Row(
            r.prompt_T,
            r.teacher_T or r.prompt_T,
            r.completion_T,
            r.x_length,
            r.advantage,
            r.behaviour_T,
        )
        for r in rows
    ]


def test_a_night_of_the_learner_equals_the_reference_night(worker):
    """Two levels, C = (1, 1): wake, a whole night of some steps into level 1, commit."""
    config = changed(CONFIG, learners={"grad_clip": 1e6}, sleep={"lr": 1e-2, "warmup": 1})
    learner = worker(config, kind="two levels")
    base = checkpoints.load(learner.base, dtype=torch.float32)
    for level in (m for m in base.modules() if hasattr(m, "set_state")):
        level.set_state(torch.zeros_like(level.state))  # all LOCKED: exactly the frozen base
    teacher = slots_of(learner, lambda slot, state: state != LOCKED)
    own = slots_of(learner, lambda slot, state: slot == BASE_SLOT)
    new = {k: v for k, v in slots_of(learner, lambda slot, _: slot == 1).items() if k[1] == 1}
    moved = wake(base, teacher, own, DOCUMENTS, config.wake.lr)
    learner.wake(DOCUMENTS)
    assert learner.open_night(1, due=(1, 2)) == 1
    got = [learner.seed_step(ROWS, step, 2 * STEPS).metrics["loss"] for step in range(STEPS)]
    learner.commit_night()
    options = {
        "alpha": config.objective.alpha,
        "prompt_weight": config.objective.prompt_weight,
        "cap": config.imitation.importance_cap,
        "lr": config.sleep.lr,
        "warmup": config.sleep.warmup,
        "steps": 2 * STEPS,
    }
    memory, losses = night(base, teacher, new, moved, [reference(ROWS)] * STEPS, options)
    assert got == pytest.approx(losses, abs=1e-4) and losses[-1] < losses[0]
    for name, level in learner.levels.items():
        expected = memory[key_of(name)]
        states = level.state.tolist()
        assert [slot for slot, state in enumerate(states) if state != LOCKED] == sorted(expected)
        assert states[BASE_SLOT] == FRESH
        for slot, expert in expected.items():
            for part in PARTS:
                stored = getattr(level, part)[slot]
                # AdamW moves an element whose gradient is rounding by a whole step: a share of a
                # step of 1e-2 is allowed in single elements, not on the whole.
                difference = (stored - expert[part]).abs()
                assert difference.mean() < 1e-4 and difference.max() < 1e-2, (name, slot, part)


def test_rows_rewards_and_advantages_equal_those_of_the_reference_night():
    from sleep_rl.text.codec import PromptCodec
    from tests.fakes.texts import Asking, Words

    codec = PromptCodec(Asking(), Words())
    document = codec.context(Document("d", "ada lives in oslo"))
    d_T = codec.ids("who lives in oslo ? A : ada") + codec.eos
    before = document + codec.opener
    sequence = TeacherSequence(Origin.DOCUMENT, before, codec.bare, d_T, len(d_T) - 2)
    config = changed(CONFIG, imitation={"group_size": 3})
    [row] = teacher_rows([sequence])
    shared = len(before)  # what the teacher reads before x, as in all rows about the document
    assert row == TrainingRow(codec.bare, d_T, before, x_length=len(d_T) - 2, shared=shared)
    prefix = cut(codec, sequence, config, random.Random(3))
    continuations = [
        prefix.teacher_continuation_T,
        codec.ids("in oslo ? A : bob") + codec.eos,
        codec.ids("rome") + codec.eos,
    ]
    samples = [
        Sample(
            prefix.tokens_T,
            codec.bare,
            y,
            (-1.0,) * len(y),
            "stop",
            0,
            "student",
            (1,) * len(y),
        )
        for y in continuations
    ]
    pairs = reward_pairs([prefix], samples, 3)
    real = [levenshtein_reward(p.student_T, p.teacher_T, config.reward.z0) for p in pairs]
    slow = [
        reward(y, prefix.teacher_continuation_T, config.reward.z0, 0.0, 0.0) for y in continuations
    ]
    assert real == pytest.approx(slow) and real[0] == 1 and 0 <= min(real) < 1
    assert group_advantage(real) == pytest.approx(advantages(slow))
    [rows] = student_rows(codec, [prefix], samples, real, config)
    for row, y, a in zip(rows, continuations, advantages(slow), strict=True):
        assert row.prompt_T == codec.bare + prefix.tokens_T
        assert row.teacher_T == before + prefix.tokens_T and row.completion_T == y
        assert row.advantage == pytest.approx(a) and math.isfinite(a)
