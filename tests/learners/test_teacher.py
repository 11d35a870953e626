"""The teacher's hidden states are computed once for each sequence of a night."""

from dataclasses import replace

import pytest
import torch

from sleep_rl.contracts.records import HARD_TARGET, TEACHER
from sleep_rl.model.memory import view_of
from tests.learners.twins import ROWS


def slow_hidden(model, row):
    """Last hidden states [T, D] that predict the completion, one sequence at a time."""
    prompt = row.teacher_T or row.prompt_T
    with view_of(model, TEACHER), torch.no_grad():
        hidden = model.model(torch.tensor([prompt + row.completion_T])).last_hidden_state[0]
    return hidden[len(prompt) - 1 : -1]


@pytest.fixture
def counted(worker):
    """(learner, list that gets the number of rows of every pass)."""
    learner = worker(kind="dense")
    passes = []
    learner.model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: passes.append(len(inputs[0]))
    )
    return learner, passes


def test_each_row_gets_what_its_teacher_computes_alone(counted):
    learner, _ = counted
    rows = [*ROWS, replace(ROWS[0], teacher=HARD_TARGET)]
    hidden = learner.teacher.hidden(rows)
    assert hidden[-1] is None
    for got, row in zip(hidden[:-1], ROWS, strict=True):
        assert torch.allclose(got, slow_hidden(learner.model, row), atol=1e-5)


def test_what_the_teacher_wrote_is_computed_once_a_night_and_a_sample_of_the_student_each_time(
    counted,
):
    learner, passes = counted
    sampled = [row for row in ROWS if row.behaviour_T]
    first = learner.teacher.hidden([*ROWS, ROWS[0], *sampled])
    assert sum(passes) == len(ROWS)  # a row that comes twice is computed once
    del passes[:]
    again = learner.teacher.hidden([*ROWS, ROWS[0], *sampled])
    assert sum(passes) == len(sampled)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first, again, strict=True))
    del passes[:]
    learner.teacher.forget()
    learner.teacher.hidden(ROWS)
    assert sum(passes) == len(ROWS)


def test_a_rank_makes_as_many_passes_as_it_is_told_to(counted):
    learner, passes = counted
    learner.teacher.budget = 4096
    for at_least in (1, 3, 9):
        learner.teacher.forget()
        del passes[:]
        learner.teacher.hidden(ROWS, at_least)
        assert len(passes) == max(learner.teacher.pass_count(ROWS), at_least)
    del passes[:]
    learner.teacher.hidden([], 2)
    assert passes == [1, 1]
