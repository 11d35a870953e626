"""The teacher's hidden states: values, cache, number of passes."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.document_states import BLOCK_TOKENS
from sleep_rl.contracts.records import (
    CHECKPOINT,
    HARD_TARGET,
    TEACHER,
    UNTOUCHED_BASE,
    TrainingRow,
)
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import memory_levels, view_of
from tests.fakes.models import fill_memory
from tests.learners.twins import ROWS


def change_memory(model):
    """Give every expert and base expert of the stored memory other weights, and unlock them."""
    fill_memory(model, seed=7)
    for level in memory_levels(model).values():
        level.w_in.mul_(-1.5)
        level.set_state([2, 1, 1, 1, 1])


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


def test_rows_about_one_document_share_its_pass(counted):
    learner, passes = counted
    learner.teacher.budget = 4096
    document = tuple(3 + n % 11 for n in range(80))
    others = tuple(4 + n % 9 for n in range(70))
    rows = [
        TrainingRow((1, 5), (6, 7, 2), teacher_T=(*document, 5), shared=80),
        TrainingRow((1, 5), (8, 9, 6, 2), teacher_T=(*document, 9, 5), shared=80),
        # the completion follows the document at once
        TrainingRow((1, 5), (4, 2), teacher_T=document, shared=80),
        TrainingRow((1, 5), (7, 2), teacher_T=(*others, 6), shared=70),
    ]
    hidden = learner.teacher.hidden(rows)
    # the document's two blocks and the rows after it; the third has a token of the last block for
    # itself, so that it is another one
    assert passes == [1, 1, 2, 1, 1, 1, 1, 1]
    for got, row in zip(hidden, rows, strict=True):
        assert torch.allclose(got, slow_hidden(learner.model, row), atol=1e-5)
    del passes[:]
    sampled = replace(rows[0], completion_T=(9, 9, 2), behaviour_T=(0.0, 0.0, 0.0))
    [got] = learner.teacher.hidden([sampled])
    assert passes == [1]
    assert torch.allclose(got, slow_hidden(learner.model, sampled), atol=1e-5)


def test_documents_share_the_blocks_of_what_precedes_them(counted):
    learner, passes = counted
    learner.teacher.budget = 4096
    examples = tuple(3 + n % 7 for n in range(2 * BLOCK_TOKENS))
    rows = [
        TrainingRow((1, 5), (6, 2), teacher_T=(*examples, *document, 5), shared=len(examples) + 9)
        for document in ((4,) * 9, (5,) * 9, (6,) * 9)
    ]
    hidden = learner.teacher.hidden(rows)
    # two blocks of the examples, then one of each document and the row behind it
    assert passes == [1, 1, *(1, 1) * len(rows)]
    for got, row in zip(hidden, rows, strict=True):
        assert torch.allclose(got, slow_hidden(learner.model, row), atol=1e-5)


def test_a_short_document_is_part_of_the_pass(counted):
    learner, passes = counted
    row = TrainingRow((1, 5), (6, 2), teacher_T=tuple(range(3, 13)), shared=10)
    learner.teacher.hidden([row])
    assert passes == [1]


def test_rows_of_the_untouched_base_get_the_hidden_states_of_a_plain_model(worker, base_checkpoint):
    """Their target is the base without any memory, whatever the nights have stored since."""
    learner = worker(kind="locked")
    plain = AutoModelForCausalLM.from_pretrained(base_checkpoint("qwen3")).eval()
    change_memory(learner.model)
    rows = [replace(row, teacher=UNTOUCHED_BASE) for row in ROWS]
    hidden = learner.teacher.hidden([*rows, *ROWS])
    count = len(rows)
    for got, own, row in zip(hidden[:count], hidden[count:], rows, strict=True):
        assert torch.allclose(got, slow_hidden(plain, row), atol=1e-5)
        assert torch.allclose(own, slow_hidden(learner.model, row), atol=1e-5)
        assert not torch.allclose(got, own, atol=1e-2)


def test_the_untouched_base_of_a_checkpoint_with_experts_has_those(worker):
    learner = worker(kind="dense")
    row = replace(ROWS[0], teacher=UNTOUCHED_BASE)
    [before] = learner.teacher.hidden([replace(row, teacher=0)])
    learner.teacher.clear_cache()
    change_memory(learner.model)
    after, changed = learner.teacher.hidden([row, replace(row, teacher=0)])
    assert torch.allclose(after, before, atol=1e-5)
    assert not torch.allclose(changed, before, atol=1e-2)


def test_the_view_of_the_checkpoint_must_be_known(sleep_checkpoint):
    model = checkpoints.load(sleep_checkpoint("qwen3", "locked"))
    with view_of(model, CHECKPOINT), pytest.raises(RuntimeError, match="remember_checkpoint"):
        model(torch.tensor([[5, 6]]))


def test_passes_of_the_untouched_base_count_as_passes_of_the_own_model(counted):
    """Under ZeRO-3 every rank must gather the base equally often."""
    learner, passes = counted
    learner.teacher.budget = 4096
    rows = [*ROWS, replace(ROWS[0], teacher=UNTOUCHED_BASE)]
    assert learner.teacher.pass_count(rows) == 2
    for min_passes in (1, 2, 4, 9):
        learner.teacher.clear_cache()
        del passes[:]
        learner.teacher.hidden(rows, min_passes)
        assert len(passes) == max(2, min_passes)
    for rows in ([], [replace(ROWS[0], teacher=UNTOUCHED_BASE)]):
        del passes[:]
        learner.teacher.clear_cache()
        learner.teacher.hidden(rows, 3)
        assert len(passes) == 3
