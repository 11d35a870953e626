"""Losses and gradients of the learner against slow versions (equations 3 and 6)."""

from dataclasses import replace

import pytest
import torch

from learners.passes import split_into_passes, student_length
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import (
    HARD_TARGET,
    STUDENT,
    TEACHER,
    UNTOUCHED_BASE,
    TrainingRow,
)
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import LOCKED, memory_levels
from tests.fakes.models import fill_memory, make_base
from tests.learners.twins import CONFIG, DOCUMENTS, ROWS, logprobs, slow_l_ks


def test_the_loss_and_its_gradient_equal_equation_6(worker):
    learner = worker()
    learner.open_night(1)
    for expert in learner.module.plastic:  # away from the start, where most gradients vanish
        torch.nn.init.normal_(expert.w_out, std=0.1)
    slow = slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha)
    plastic = list(learner.module.plastic.parameters())
    want = torch.autograd.grad(slow, plastic)
    norm = torch.stack([g.norm() for g in want]).norm().item()
    metrics = learner.seed_step(ROWS, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert metrics["tokens_trained"] == 12 and metrics["sequences"] == 4


def test_the_mean_over_sequences_of_their_means_equals_equation_6(worker):
    """Over several passes, of rows of different lengths, one of them with weight on x."""
    config = replace(CONFIG, objective=replace(CONFIG.objective, mean="sequence"))
    learner = worker(config)
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    assert len(split_into_passes([student_length(row) for row in ROWS], 12)) > 1
    slow = slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha, mean="sequence")
    assert abs(slow - slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha)).item() > 1e-3
    want = torch.autograd.grad(slow, list(learner.module.plastic.parameters()))
    metrics = learner.seed_step(ROWS, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    norm = torch.stack([g.norm() for g in want]).norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    learner.discard_night()
    learner.open_night(1)
    means = []
    for row in ROWS:
        logp = logprobs(learner.model, STUDENT, row.prompt_T, row.completion_T)
        weights = [
            CONFIG.objective.prompt_weight if t < row.x_length else 1.0
            for t in range(len(row.completion_T))
        ]
        total = sum(w * logp[t, row.completion_T[t]].item() for t, w in enumerate(weights))
        means.append(-total / sum(weights))
    loss = learner.sft_step(ROWS, 0, 4)["loss"]
    assert loss == pytest.approx(sum(means) / len(means), abs=1e-5)


def test_with_gradient_checkpointing_every_step_is_the_same(worker):
    """Wake updates, too."""
    metrics = []
    for checkpointing in (False, True):
        learners = replace(CONFIG.learners, gradient_checkpointing=checkpointing)
        learner = worker(replace(CONFIG, learners=learners))
        learner.wake(DOCUMENTS[:2])
        learner.open_night(1, due=(1,))
        learner.sft_step(ROWS, 0, 10)
        metrics.append([learner.seed_step(ROWS, step, 10).metrics for step in (1, 2)])
        for each in metrics[-1]:
            assert each.pop("seconds") > 0 and each["grad_norm"] > 0
    for plain, again in zip(*metrics, strict=True):
        assert again == {name: pytest.approx(value, rel=1e-5) for name, value in plain.items()}


def assert_a_step_minimises(learner, rows, others):
    """Check the loss of a step on `rows`, and its gradient, against equation 6 token by token,
    whose value on `others` is another.
    """
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    slow, other = (
        slow_l_ks(learner.model, some, CONFIG.objective.alpha) for some in (rows, others)
    )
    assert abs(slow.item() - other.item()) > 1e-3
    gradients = torch.autograd.grad(slow, list(learner.module.plastic.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    metrics = learner.seed_step(rows, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    learner.discard_night()


def test_the_teachers_temperature_applies_to_the_answer_only(worker):
    """The prompt x is learned at temperature 1, at which it was sampled."""
    rows = [
        replace(row, temperature=temperature, x_length=1)
        for row, temperature in zip(ROWS, (0.5, 1.0, 0.25, 1.0), strict=True)
    ]
    plain = [replace(row, temperature=1.0) for row in rows]
    assert_a_step_minimises(worker(), rows, plain)


def test_each_row_is_compared_with_its_own_teacher(worker, tmp_path):
    learner = worker()
    paths = []
    for k, (family, size) in enumerate(
        (
            ("llama", {"hidden_size": 32, "head_dim": 16, "vocab_size": 320}),
            ("qwen3", {"num_hidden_layers": 1, "vocab_size": 280}),
        )
    ):
        base = make_base(family, str(tmp_path / f"{k}"), seed=k + 7, **size)
        paths.append(
            checkpoints.as_teacher(
                base, str(tmp_path / f"t{k}"), checkpoints.load_tokenizer(base, 320)
            )
        )
    learner.load_teachers(paths)
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    rows = [replace(row, teacher=k) for row, k in zip(ROWS, (2, 0, 1, 2), strict=True)]
    teachers = [checkpoints.load(path) for path in paths]
    slow = slow_l_ks(learner.model, rows, CONFIG.objective.alpha, teachers=teachers)
    assert abs(slow.item() - slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha).item()) > 1e-2
    norm = torch.stack(
        [g.norm() for g in torch.autograd.grad(slow, list(learner.module.plastic.parameters()))]
    ).norm()
    metrics = learner.seed_step(rows, 0, 10).metrics
    assert metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    learner.discard_night()
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    alone = [
        slow_l_ks(
            learner.model,
            [replace(row, advantage=0.0, behaviour_T=(0.0,) * len(row.completion_T))],
            1.0,
            prompt_weight=0.0,
            teachers=teachers,
        ).item()
        for row in rows
    ]
    result = learner.seed_step(rows, 0, 10)
    assert result.divergence_N == pytest.approx(alone, abs=1e-5)
    learner.discard_night()
    learner.unload_teachers()
    assert learner.module.other_teachers == () and not any(
        "other_teachers" in name for name in learner.module.state_dict()
    )


def test_rows_of_the_untouched_base_are_compared_with_it(worker):
    """In one batch with rows of the night's teacher, after the memory was changed by nights."""
    learner = worker()
    fill_memory(learner.model)
    for level in memory_levels(learner.model).values():
        level.set_slot_state(4, LOCKED)  # free for the night's expert
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    teachers = (UNTOUCHED_BASE, 0, 0, UNTOUCHED_BASE)
    rows = [replace(row, teacher=k) for row, k in zip(ROWS, teachers, strict=True)]
    slow = slow_l_ks(learner.model, rows, CONFIG.objective.alpha)
    assert abs(slow.item() - slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha).item()) > 1e-4
    assert learner.seed_step(rows, 0, 10).metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    learner.discard_night()


def test_a_hard_share_adds_cross_entropy_with_the_answer(worker):
    """On y only; its gradient is that of KL((1 - h) T + h token || S)."""
    learner = worker()
    rows = [
        replace(row, hard_share=share, x_length=1)
        for row, share in zip(ROWS, (0.25, 1.0, 0.5, 0.0), strict=True)
    ]
    soft = [replace(row, hard_share=0.0) for row in rows]
    assert_a_step_minimises(learner, rows, soft)
    # the divergence that rehearsal and the metrics read has no hard part
    divergences = []
    for some in (rows, soft):
        learner.open_night(1)
        divergences.append(learner.seed_step(some, 0, 10).divergence_N)
        learner.discard_night()
    assert divergences[0] == pytest.approx(divergences[1], abs=1e-6)


def test_a_hard_target_gives_cross_entropy(worker):
    """KL(T||S) is -log S(token) if T has all probability on the token; in one batch with rows of a
    teacher.
    """
    learner = worker()
    learner.open_night(1)
    for expert in learner.module.plastic:
        torch.nn.init.normal_(expert.w_out, std=0.1)
    hard = TrainingRow((5, 6), (33, 34, 35, 1), teacher=HARD_TARGET, x_length=2)
    real = [replace(ROWS[0], temperature=0.5), *ROWS[1:-1], replace(ROWS[-1], temperature=0.25)]
    rows = [real[0], hard, *real[1:]]
    logp = logprobs(learner.model, STUDENT, hard.prompt_T, hard.completion_T)
    weight = [CONFIG.objective.prompt_weight] * 2 + [1.0] * 2
    hard_loss = -sum(
        w * logp[t, token]
        for t, (token, w) in enumerate(zip(hard.completion_T, weight, strict=True))
    )
    positions = sum(
        CONFIG.objective.prompt_weight if t < r.x_length else 1.0
        for r in ROWS
        for t in range(len(r.completion_T))
    )
    rest = slow_l_ks(learner.model, real, 1.0) * positions
    policy = slow_l_ks(learner.model, real, 0.0)
    slow = 0.5 * (rest + hard_loss) / (positions + sum(weight)) + 0.5 * policy
    result = learner.seed_step(rows, 0, 10)
    assert result.metrics["loss"] == pytest.approx(slow.item(), abs=1e-5)
    alone = -(logp[2, 35] + logp[3, 1]).item() / 2
    assert result.divergence_N[1] == pytest.approx(alone, abs=1e-5)
    learner.discard_night()
    learner.open_night(1)
    only = learner.seed_step([hard], 0, 10).metrics
    assert only["loss"] > 0 and only["divergence"] > 0


def test_the_sft_loss_is_the_mean_cross_entropy_of_the_completions(worker):
    learner = worker()
    learner.open_night(1)
    loss = positions = 0.0
    for row in ROWS:
        logp = logprobs(learner.model, STUDENT, row.prompt_T, row.completion_T)
        for t, token in enumerate(row.completion_T):
            weight = CONFIG.objective.prompt_weight if t < row.x_length else 1.0
            loss -= weight * logp[t, token].item()
            positions += weight
    assert 0 < CONFIG.objective.prompt_weight < 1 and ROWS[-1].x_length == 1
    assert learner.sft_step(ROWS, 0, 4)["loss"] == pytest.approx(loss / positions, abs=1e-5)


def test_a_loss_that_is_not_finite_raises_one_line_and_changes_nothing(worker):
    learner = worker()
    before = learner.export(TEACHER, 1, {}, TEACHER).manifest
    learner.open_night(1)
    bad = [replace(ROWS[2], advantage=float("nan")), *ROWS[:3]]
    with pytest.raises(RunError, match="the loss is nan") as error:
        learner.seed_step(bad, 0, 4)
    assert "\n" not in str(error.value)
    learner.discard_night()
    assert learner.export(TEACHER, 2, {}, TEACHER).manifest == before
