"""The memory level compared with its equation, and the effects of unlocking, patching and
committing.
"""

import math

import pytest
import torch

from sleep_rl.contracts.records import STUDENT, TEACHER
from sleep_rl.model.memory import (
    ACTIVE,
    BASE_SLOT,
    FRESH,
    LOCKED,
    Expert,
    MemoryLevel,
    Patch,
    commit,
    discard,
    init_slots,
    tensors_of,
    view_of,
    write_tensors,
)

D = 6
LOW = 3
EXPERTS = 4


def make(top_k=EXPERTS, states=(FRESH, ACTIVE, ACTIVE, ACTIVE, LOCKED), seed=0):
    level = MemoryLevel(D, EXPERTS, LOW, top_k)
    generator = torch.Generator().manual_seed(seed)
    init_slots(level, generator=generator)
    with torch.no_grad():
        level.router.normal_(0, 1, generator=generator)
        level.w_out.normal_(0, 1, generator=generator)
    level.set_state(states)
    return level


def slow(level, x):
    """y = x + sum_s g_s B_s^T (silu(A1_s x) * (A2_s x)), one token, one slot and one rank at a
    time.
    """
    score = [sum(r * v for r, v in zip(row, x, strict=True)) for row in level.router.tolist()]
    active = sorted(
        (s for s, state in enumerate(level.state.tolist()) if state == ACTIVE),
        key=lambda s: -score[s],
    )
    chosen = set(active[: level.top_k]) | {
        s for s, state in enumerate(level.state.tolist()) if state == FRESH
    }
    y = list(x)
    for s in chosen:
        gate = 1 / (1 + math.exp(-score[s]))
        a = [sum(w * v for w, v in zip(row, x, strict=True)) for row in level.w_in[s].tolist()]
        for r in range(LOW):
            h = a[r] / (1 + math.exp(-a[r])) * a[LOW + r]
            for d in range(D):
                y[d] += gate * h * level.w_out[s, r, d].item()
    return y


@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_forward_equals_equation(top_k, fixed_shape):
    level = make(top_k)
    level.fixed_shape = fixed_shape
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(1))
    want = torch.tensor([slow(level, row) for row in x.tolist()])
    assert torch.allclose(level(x), want, atol=1e-5)


def test_locked_level_is_identity_and_unlocking_keeps_output():
    level = make(states=(LOCKED,) * 5)
    init_slots(level, generator=torch.Generator().manual_seed(3))
    x = torch.randn(4, D)
    assert level(x) is x
    for states in ((FRESH, LOCKED, LOCKED, LOCKED, LOCKED), (FRESH, FRESH, LOCKED, LOCKED, LOCKED)):
        level.set_state(states)
        assert torch.equal(level(x), x)


def test_fresh_expert_does_not_displace_active_ones_in_top_k():
    level = make(top_k=1, states=(LOCKED, ACTIVE, ACTIVE, LOCKED, LOCKED))
    with torch.no_grad():
        level.w_out[3].zero_()
    x = torch.randn(16, D)
    before = level(x)
    level.set_slot_state(3, FRESH)
    # not bit for bit: the matmul is one slot wider
    assert torch.allclose(level(x), before, atol=1e-6)


def test_untrained_slot_adds_zero():
    level = make()
    x = torch.randn(5, D)
    before = level(x)
    with torch.no_grad():
        level.w_out[4].zero_()
    level.set_slot_state(4, FRESH)
    assert torch.equal(level(x), before)


class Holder(torch.nn.Module):
    """A model with one layer, for functions over all levels of a model."""

    def __init__(self, level):
        super().__init__()
        self.memory = torch.nn.ModuleList([level])


def patched(level, slot=4):
    expert = Expert(level.router[slot], level.w_in[slot], level.w_out[slot])
    state = level.state.clone()
    state[slot] = FRESH
    level.set_patch(Patch(state, {slot: expert}))
    return expert


def test_teacher_and_student_views_of_one_model():
    level = make()
    model = Holder(level)
    x = torch.randn(5, D)
    before = level(x)
    expert = patched(level)
    with view_of(model, STUDENT):
        student = level(x)
    assert torch.equal(level(x), before) and not torch.allclose(student, before)
    student.sum().backward()
    assert expert.w_out.grad.abs().sum() > 0 and level.w_out.grad is None


def test_commit_stores_student_and_discard_keeps_teacher():
    for keep in (True, False):
        level = make()
        model = Holder(level)
        x = torch.randn(5, D)
        before = level(x)
        expert = patched(level)
        with torch.no_grad():
            expert.w_out.add_(1.0)
        with view_of(model, STUDENT):
            student = level(x).detach()
        commit(model) if keep else discard(model)
        assert torch.allclose(level(x), student if keep else before, atol=1e-6)
        assert level.state.tolist() == [FRESH, ACTIVE, ACTIVE, ACTIVE, ACTIVE if keep else LOCKED]
        assert level.patch is None and level.view == TEACHER


def test_tensors_of_names_each_slot_of_the_view():
    level = make()
    model = Holder(level)
    expert = patched(level)
    with torch.no_grad():
        expert.w_in.fill_(7.0)
    teacher = tensors_of(model, TEACHER)
    student = tensors_of(model, STUDENT)
    differing = {k for k in teacher if not torch.equal(teacher[k], student[k])}
    assert differing == {"memory.0.w_in#4", "memory.0.state"}
    assert len(teacher) == 3 * level.slots + 1
    assert torch.equal(teacher[f"memory.0.w_out#{BASE_SLOT}"], level.w_out[BASE_SLOT])


CHANGES = {
    "set_state": lambda model: model.memory[0].set_state([FRESH, LOCKED, LOCKED, ACTIVE, ACTIVE]),
    "set_slot_state": lambda model: model.memory[0].set_slot_state(4, ACTIVE),
    "set_slot_state of the student": lambda model: model.memory[0].set_slot_state(
        4, ACTIVE, view=STUDENT
    ),
    "set_patch": lambda model: patched(model.memory[0]),
    "discard": discard,
    "commit": commit,
    "load_state_dict": lambda model: model.memory[0].load_state_dict(
        make(states=(LOCKED, LOCKED, LOCKED, LOCKED, ACTIVE)).state_dict()
    ),
    "write_tensors": lambda model: write_tensors(
        model, {"memory.0.state": torch.tensor([LOCKED, LOCKED, ACTIVE, LOCKED, FRESH])}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_forward_uses_changed_states(change):
    """In both views, after an earlier call has cached the number of used slots."""
    level = make(top_k=1, states=(LOCKED, ACTIVE, LOCKED, LOCKED, LOCKED))
    model = Holder(level)
    # so many that some are routed to each expert
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(3))
    level.set_patch(Patch(torch.tensor([LOCKED, ACTIVE, ACTIVE, LOCKED, LOCKED]), {}))
    views = (TEACHER, STUDENT)
    before = []
    for view in views:
        with view_of(model, view):
            before.append(level(x))
    CHANGES[change](model)
    after = []
    for view in views:
        with view_of(model, view):
            after.append(level(x))
            fresh = make(top_k=1, states=level.states().tolist())
            assert torch.allclose(after[-1], fresh(x), atol=1e-6)
    assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_write_tensors_round_trip():
    target = Holder(make(seed=0))
    source = Holder(make(seed=1, states=(LOCKED, ACTIVE) * 2 + (1,)))
    kept = target.memory[0].w_in.data_ptr()
    write_tensors(target, tensors_of(source))
    for key, tensor in tensors_of(target).items():
        assert torch.equal(tensor, tensors_of(source)[key]), key
    assert target.memory[0].w_in.data_ptr() == kept
