"""Rows whose loss is on the answer only."""

from dataclasses import replace

import pytest
import torch

from learners.batch import without_prompt_loss
from sleep_rl.contracts.records import TrainingRow
from tests.learners.twins import CONFIG, ROWS, slow_l_ks

ROW = TrainingRow((1, 2), (3, 4, 5, 6), teacher_T=(9, 1, 2), x_length=2)


def test_x_belongs_to_the_prompts_where_its_weight_is_0():
    moved = without_prompt_loss(ROW)
    assert moved == TrainingRow((1, 2, 3, 4), (5, 6), teacher_T=(9, 1, 2, 3, 4))
    sampled = replace(ROW, behaviour_T=(-1.0, -2.0, -3.0, -4.0), teacher_T=())
    moved = without_prompt_loss(sampled)
    assert moved.behaviour_T == (-3.0, -4.0) and moved.teacher_T == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "row",
    [
        replace(ROW, advantage=0.5, behaviour_T=(-1.0,) * 4),  # rewarded on x as well
        replace(ROW, x_length=0),
        replace(ROW, x_length=4),  # x only
    ],
)
def test_other_rows_are_unchanged(row):
    assert without_prompt_loss(row) is row


def test_a_step_without_loss_on_x_has_the_loss_of_equation_6(worker):
    objective = replace(CONFIG.objective, prompt_weight=0.0)
    learner = worker(replace(CONFIG, objective=objective))
    learner.open_night(1)
    with torch.no_grad():
        for expert in learner.module.plastic:
            expert.w_out.normal_(std=0.1)
    rows = [replace(row, x_length=2) for row in ROWS]
    slow = slow_l_ks(learner.model, rows, objective.alpha, prompt_weight=0.0)
    assert learner.seed_step(rows, 0, 4).metrics["loss"] == pytest.approx(slow.item(), abs=1e-4)
