"""The frozen layers below the memory: values of the whole computation, what is kept, what is
computed again.
"""

from dataclasses import replace

import pytest
import torch

from sleep_rl.contracts.records import STUDENT, TEACHER, TrainingRow
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import (
    ACTIVE,
    LOCKED,
    Expert,
    first_layer,
    memory_levels,
    patch,
    tensors_of,
    view_of,
    write_tensors,
)
from sleep_rl.model.packing import PaddedRows
from tests.learners.twins import CONFIG, DOCUMENTS, ROWS, slow_l_ks

UPPER = "model.layers.1.mlp.memory.0"
LOWER = "model.layers.0.mlp.memory.0"
REPLAY = [row for row in ROWS if not row.teacher_T]
SAMPLED = [row for row in ROWS if row.behaviour_T]


def length(row):
    return len(row.prompt_T) + len(row.completion_T)


def fill(learner):
    """Unlock two experts that change the outputs; the third slot is free."""
    level = learner.levels[UPPER]
    generator = torch.Generator().manual_seed(1)
    level.w_out.data.normal_(0, 0.3, generator=generator)
    level.set_state([LOCKED, ACTIVE, ACTIVE, LOCKED, LOCKED])


def whole_twin(learner, sleep_checkpoint):
    """Return the model with memory in every layer, of which the lower is LOCKED and the upper is
    the learner's.
    """
    twin = checkpoints.load(sleep_checkpoint("qwen3", "locked"))
    write_tensors(twin, tensors_of(learner.model))
    assert not memory_levels(twin)[LOWER].state.any()
    return twin


@pytest.fixture
def upper(worker):
    """Return (a learner with memory in the upper of two layers, list to which the number of tokens
    is appended that the lower layer computes in each pass).
    """
    learner = worker(kind="upper locked")
    fill(learner)
    computed = []
    learner.model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: computed.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    return learner, computed


def test_loss_and_gradient_are_those_of_the_whole_model_cold_and_warm(upper, sleep_checkpoint):
    """Token by token, through all layers, of a model with a LOCKED lower memory."""
    learner, computed = upper
    assert first_layer(learner.model.config.memory_levels) == 1 and list(learner.levels) == [UPPER]
    twin = whole_twin(learner, sleep_checkpoint)
    slot = learner.open_night(1)
    assert slot == 3 and len(learner.module.plastic) == 1
    [plastic] = learner.module.plastic
    torch.nn.init.normal_(plastic.w_out, std=0.1)
    for step in range(3):  # the first one fills the cache
        expert = Expert(plastic.router, plastic.w_in, plastic.w_out)
        patch(twin, {UPPER: {slot: expert}})
        slow = slow_l_ks(twin, ROWS, CONFIG.objective.alpha)
        gradients = torch.autograd.grad(slow, list(expert.parameters()))
        norm = torch.stack([g.norm() for g in gradients]).norm().item()
        del computed[:]
        metrics = learner.seed_step(ROWS, step, 10).metrics
        assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert bool(learner.module.trunk.cache.bytes)
    # the student's samples alone are computed again, as the teacher and as the student read them
    assert sum(computed) <= sum(2 * length(row) + 6 for row in SAMPLED) * 1.25


def test_optimizer_steps_are_those_of_memory_in_every_layer_with_the_lower_locked(
    upper, worker, sleep_checkpoint
):
    learner, _ = upper
    whole = worker()
    write_tensors(whole.model, tensors_of(learner.model))
    # both layers train the same slot
    whole.levels[LOWER].set_state(learner.levels[UPPER].state)
    assert learner.open_night(1) == whole.open_night(1) == 3
    whole.levels[LOWER].set_state([LOCKED] * 5)
    whole.levels[LOWER].patch.state_S.fill_(LOCKED)
    for step in range(4):
        got, want = (each.seed_step(ROWS, step, 10).metrics for each in (learner, whole))
        got.pop("seconds"), want.pop("seconds")
        assert got == {name: pytest.approx(value, rel=1e-4) for name, value in want.items()}
    for part in ("router", "w_in", "w_out"):
        values = [getattr(each.module.plastic[-1], part) for each in (learner, whole)]
        assert torch.allclose(*values, atol=1e-6) and values[0].requires_grad
    assert learner.module.plastic[-1].w_out.abs().max() > 0


def test_a_pass_computes_only_what_is_missing(upper):
    learner, computed = upper
    rows = [*REPLAY, *SAMPLED, TrainingRow((5, 6), (20, 21, 22, 23, 24, 25, 1))]
    trunk = learner.module.trunk
    packed = PaddedRows.of([r.prompt_T for r in rows], [r.completion_T for r in rows], 0, "cpu")
    with torch.no_grad(), view_of(learner.model, TEACHER):
        want = learner.model.model(packed.ids_BT, attention_mask=packed.mask_BT).last_hidden_state
    width = packed.ids_BT.shape[1]
    del computed[:]
    for kept, tokens in (
        ([], len(rows) * width),  # nothing is expected to come again
        (rows[:1] + SAMPLED, len(rows) * width),  # the student's samples are not kept
        (rows[-1:], (len(rows) - 1) * width),
        (rows[-1:], (len(rows) - 2) * max(map(length, SAMPLED))),
    ):
        trunk.expect(kept)
        hidden_PD = learner.module.hidden(packed, TEACHER)
        assert torch.allclose(hidden_PD, packed.at_positions(want), atol=1e-5)
        assert not hidden_PD.requires_grad
        assert computed == [tokens]
        del computed[:]
    assert trunk.cache.bytes == 4 * 64 * (length(rows[0]) + length(rows[-1]))
    trunk.expect(SAMPLED)
    kept_alone = PaddedRows.of([rows[0].prompt_T], [rows[0].completion_T], 0, "cpu")
    count = len(rows[0].completion_T)
    got = learner.module.hidden(kept_alone, TEACHER)
    assert computed == [] and torch.allclose(got, packed.at_positions(want)[:count], atol=1e-5)


def test_with_memory_in_every_layer_nothing_is_kept(worker):
    learner = worker()
    learner.open_night(1)
    learner.seed_step(ROWS, 0, 10)
    assert learner.module.trunk.first_layer == learner.module.trunk.cache.bytes == 0


@pytest.mark.parametrize("stage", [1, 3])
def test_gradient_checkpointing_and_zero_3_give_the_same_steps(stage, worker):
    """Under ZeRO-3 nothing is kept, since all ranks must make the same passes."""
    metrics = []
    for changes in ({}, {"zero_stage": stage, "gradient_checkpointing": True}):
        learners = replace(CONFIG.learners, **changes)
        learner = worker(replace(CONFIG, learners=learners), kind="upper locked")
        fill(learner)
        learner.open_night(1)
        metrics.append([learner.seed_step(ROWS, step, 10).metrics for step in range(3)])
        assert bool(learner.module.trunk.cache.bytes) == (learners.zero_stage < 3)
        for each in metrics[-1]:
            assert each.pop("seconds") > 0
    for plain, other in zip(*metrics, strict=True):
        assert other == {name: pytest.approx(value, rel=1e-4) for name, value in plain.items()}


def test_caches_are_empty_after_every_checkpoint(upper, worker, tmp_path):
    """So is that of a resumed learner, and their next steps are the same, bit for bit."""
    learner, _ = upper
    other = worker(kind="upper locked")
    state = str(tmp_path / "state")
    night = str(tmp_path / "night")
    learner.open_night(1)
    learner.seed_step(ROWS, 0, 10)
    learner.discard_night()
    assert learner.module.trunk.cache.bytes > 0  # a new night changes nothing below the memory
    learner.save_checkpoint(state)
    other.module.trunk.cache.put((5,), torch.zeros(1, 64))
    other.load_checkpoint(state)
    for each in (learner, other):
        assert each.module.trunk.cache.bytes == each.teacher.cache.bytes == 0
        each.open_night(1)
    learner.seed_step(ROWS[:2], 0, 10)
    learner.save_progress(night)
    other.seed_step(ROWS, 0, 10)
    other.restore_progress(night, 1, 10)
    for each in (learner, other):
        assert each.module.trunk.cache.bytes == each.teacher.cache.bytes == 0
        each.seed_step(ROWS, 1, 10)
    values = [list(each.module.plastic.parameters()) for each in (learner, other)]
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_wake_updates_are_those_of_the_whole_model(upper, sleep_checkpoint):
    """Equation 2 on a chunk of two documents, in the upper layer only."""
    learner, _ = upper
    twin = whole_twin(learner, sleep_checkpoint)
    learner.wake(DOCUMENTS[:2])
    [(name, sums)] = learner.chunks.sums.items()
    expert = Expert(*(getattr(learner.levels[UPPER], part)[0] for part in sums))
    patch(twin, {UPPER: {0: expert}})
    total = 0
    for document in DOCUMENTS[:2]:
        with view_of(twin, STUDENT):
            logp = twin(torch.tensor([document])).logits[0, :-1].log_softmax(-1)
        total -= logp[torch.arange(len(document) - 1), torch.tensor(document[1:])].mean()
    total.backward()
    assert name == UPPER and float(sums["w_out"].abs().max()) > 0
    for part, parameter in expert.named_parameters():
        assert torch.allclose(sums[part], CONFIG.wake.lr * parameter.grad, atol=1e-6)


def test_other_teachers_are_computed_whole(upper):
    """A model of model.teachers has layers and embeddings of its own."""
    learner, computed = upper
    other = checkpoints.load(learner.base)
    row = REPLAY[0]
    packed = PaddedRows.of([row.prompt_T], [row.completion_T], 0, "cpu")
    learner.module.trunk.expect([row])
    learner.module.hidden(packed, TEACHER)
    other.model.embed_tokens.weight.data.mul_(-1.5)
    del computed[:]
    with torch.no_grad():
        want = other.model(packed.ids_BT).last_hidden_state
    got = learner.module.hidden(packed, TEACHER, other)
    assert torch.allclose(got, packed.at_positions(want), atol=1e-5) and computed == []
