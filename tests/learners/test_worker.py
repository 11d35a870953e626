"""A night of the learner: which weights it changes; exports; saved states."""

import inspect
from dataclasses import replace

import pytest
import torch

from sleep_rl.config.method import Wake
from sleep_rl.contracts.records import STUDENT, TEACHER, TrainingRow
from sleep_rl.contracts.roles import Learner
from sleep_rl.model.memory import ACTIVE, FRESH, LOCKED
from tests.learners.twins import CONFIG, DOCUMENTS, ROWS, logprobs


def test_the_learner_has_the_signatures_of_the_contract():
    from learners.worker import LearnerWorker

    for name in (name for name in dir(Learner) if not name.startswith("_")):
        wanted = inspect.signature(getattr(Learner, name))
        assert inspect.signature(getattr(LearnerWorker, name)) == wanted, name


def test_a_night_changes_only_the_new_expert_and_its_router_row(worker):
    learner = worker(kind="dense")  # experts 1..3 ACTIVE, 4 FRESH: free slot 4
    for level in learner.levels.values():
        level.set_slot_state(4, LOCKED)
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    assert learner.open_night(1) == 4
    for step in range(2):
        learner.seed_step(ROWS, step, 4)
    # section 3 b: stored weights are unchanged
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    learner.commit_night()
    for key, after in learner.model.state_dict().items():
        if ".memory." not in key:
            assert torch.equal(after, before[key]), key
        elif key.endswith("state"):
            assert after.tolist() == [LOCKED, ACTIVE, ACTIVE, ACTIVE, ACTIVE]
        else:
            assert torch.equal(after[:4], before[key][:4]) and not torch.equal(
                after[4], before[key][4]
            ), key


def test_the_student_equals_the_teacher_at_learning_rate_0(worker):
    config = replace(CONFIG, sleep=replace(CONFIG.sleep, lr=0.0), wake=Wake(lr=0.0))
    learner = worker(config)
    learner.wake(DOCUMENTS)
    learner.open_night(1, due=(1,))
    replay = [TrainingRow((5, 6), (7, 8, 1), replay=True)] * 4
    for step in range(2):
        metrics = learner.seed_step(replay, step, 4).metrics
        assert metrics["divergence_replay"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["loss"] == pytest.approx(0.0, abs=1e-6)
    assert all(float(e.w_out.detach().abs().max()) == 0.0 for e in learner.module.plastic)


def test_the_new_expert_becomes_active_at_half_of_the_steps(worker):
    learner = worker()
    learner.open_night(1)
    states = []
    for step in range(4):
        learner.seed_step(ROWS, step, 4)
        states.append(int(next(iter(learner.levels.values())).patch.state_S[1]))
    assert states == [FRESH, FRESH, ACTIVE, ACTIVE]


def test_an_export_is_a_delta_of_the_view_with_its_probe(worker):
    learner = worker()
    full = learner.export(TEACHER, 1, {}, TEACHER)
    assert set(full.tensors) == set(full.manifest) and len(full.manifest) == 2 * (3 * 5 + 1)
    learner.open_night(1)
    # with B = 0 the first step changes B only, but whole modules are exported
    learner.seed_step(ROWS, 0, 4)
    delta = learner.export(STUDENT, 2, full.manifest, STUDENT)
    names = {key.split("memory.0.")[1] for key in delta.tensors}
    assert names == {"router#1", "w_in#1", "w_out#1", "state"}
    want = logprobs(learner.model, STUDENT, (5,), (6, 7, 8))[
        torch.arange(3), torch.tensor([6, 7, 8])
    ]
    assert torch.allclose(torch.tensor(delta.probe_logprobs_T), want, atol=1e-5)
    assert delta.probe_logprobs_T != full.probe_logprobs_T
    assert learner.export(TEACHER, 3, full.manifest, TEACHER).tensors == {}


def test_saved_states_are_independent(worker):
    learner = worker()
    learner.save_state("start")
    learner.open_night(1)
    learner.sft_step(ROWS, 0, 4)
    learner.commit_night()
    learner.save_state("later")
    changed = learner.export(TEACHER, 1, {}, TEACHER).manifest
    learner.load_state("start")
    assert learner.export(TEACHER, 2, {}, TEACHER).manifest != changed
    learner.load_state("later")
    assert learner.export(TEACHER, 3, {}, TEACHER).manifest == changed
