"""The teacher's hidden states: values, cache, number of passes."""

from dataclasses import replace

import pytest
import torch

from sleep_rl.contracts.records import HARD_TARGET, TEACHER
from sleep_rl.model.memory import view_of
from tests.learners.twins import ROWS


def slow_hidden(model, row):
    """Return the last hidden states [T, D] that predict the completion, one sequence at a time."""
    prompt = row.teacher_T or row.prompt_T
    with view_of(model, TEACHER), torch.no_grad():
        hidden = model.model(torch.tensor([prompt + row.completion_T])).last_hidden_state[0]
    return hidden[len(prompt) - 1 : -1]


@pytest.fixture
def counted(worker):
    """Return (learner, list to which the number of rows of each pass is appended)."""
    learner = worker(kind="dense")
    passes = []
    learner.model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: passes.append(len(inputs[0]))
    )
    return learner, passes


def test_batched_hidden_states_equal_those_of_single_rows(counted):
    learner, _ = counted
    rows = [*ROWS, replace(ROWS[0], teacher=HARD_TARGET)]
    hidden = learner.teacher.hidden(rows)
    assert hidden[-1] is None
    for got, row in zip(hidden[:-1], ROWS, strict=True):
        assert torch.allclose(got, slow_hidden(learner.model, row), atol=1e-5)


def test_teacher_sequences_are_cached_and_student_samples_are_not(
    counted,
):
    learner, passes = counted
    sampled = [row for row in ROWS if row.behaviour_T]
    first = learner.teacher.hidden([*ROWS, ROWS[0], *sampled])
    assert sum(passes) == len(ROWS)  # a repeated row is computed once
    del passes[:]
    again = learner.teacher.hidden([*ROWS, ROWS[0], *sampled])
    assert sum(passes) == len(sampled)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, again, strict=True))
    del passes[:]
    learner.teacher.clear_cache()
    learner.teacher.hidden(ROWS)
    assert sum(passes) == len(ROWS)


def test_min_passes_adds_padding_passes(counted):
    learner, passes = counted
    learner.teacher.budget = 4096
    for min_passes in (1, 3, 9):
        learner.teacher.clear_cache()
        del passes[:]
        learner.teacher.hidden(ROWS, min_passes)
        assert len(passes) == max(learner.teacher.pass_count(ROWS), min_passes)
    del passes[:]
    learner.teacher.hidden([], 2)
    assert passes == [1, 1]
