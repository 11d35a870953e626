"""Optimizer steps with each ZeRO stage, and saved progress of a night."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sleep_rl.contracts.errors import RunError
from tests.learners.twins import CONFIG, ROWS, slow_l_ks


def plastic_of(learner):
    with learner.engine.whole():
        return [p.detach().clone() for p in learner.module.plastic.parameters()]


def plain_adamw(learner, steps):
    """Return (initial, final) value of each plastic parameter for torch's AdamW on the slow loss,
    with gradient clipping.
    """
    learner.open_night(1)
    plastic = list(learner.module.plastic.parameters())
    start = [p.detach().clone() for p in plastic]
    optimizer = torch.optim.AdamW(plastic, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        optimizer.zero_grad()
        slow_l_ks(learner.model, ROWS, CONFIG.objective.alpha).backward()
        torch.nn.utils.clip_grad_norm_(plastic, CONFIG.learners.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.sleep.lr * (10 - step) / 10
        optimizer.step()
    return list(zip(start, [p.detach() for p in plastic], strict=True))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_each_zero_stage_takes_the_steps_of_plain_adamw(stage, worker):
    learner = worker(replace(CONFIG, learners=replace(CONFIG.learners, zero_stage=stage)))
    for _ in range(2):  # the second night starts with a reset optimizer
        learner.open_night(1)
        start = plastic_of(learner)
        for step in range(3):
            learner.seed_step(ROWS, step, 10)
        done = plastic_of(learner)
        learner.discard_night()
    want = plain_adamw(worker(), 3)
    assert all(torch.equal(a, b) for a, b in zip(start, [p for p, _ in want], strict=True))
    for got, (_, expected) in zip(done, want, strict=True):
        assert torch.allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(
    "stage, dtype",
    [
        (0, "float32"),
        (1, "float32"),
        (2, "float32"),
        (3, "float32"),
        (1, "bfloat16"),
        (3, "bfloat16"),
    ],
)
# before the first step, and before and after half of the steps, at which the expert becomes ACTIVE
@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_night_continues_bit_for_bit_from_saved_progress(stage, dtype, cut, worker, tmp_path):
    """Weights, moments and step count are restored."""
    config = replace(
        CONFIG,
        learners=replace(CONFIG.learners, zero_stage=stage),
        model=replace(CONFIG.model, top_k=1, dtype=dtype),
    )
    whole = worker(config)
    whole.open_night(1)
    for step in range(6):
        if step == cut:
            whole.save_progress(str(tmp_path / "night"))
        whole.seed_step(ROWS, step, 6)
    other = worker(config)
    other.open_night(1)
    if cut == 4:
        other.seed_step(list(reversed(ROWS)), 0, 6)  # its own progress is overwritten
    other.restore_progress(str(tmp_path / "night"), cut, 6)
    assert not other.teacher.cache.bytes
    for step in range(cut, 6):
        metrics = other.seed_step(ROWS, step, 6).metrics
    assert metrics["grad_norm"] > 0
    for got, want in zip(plastic_of(other), plastic_of(whole), strict=True):
        assert torch.equal(got, want)
    assert {
        name: level.patch.state_S.tolist() for name, level in other.levels.items() if level.patch
    } == {name: level.patch.state_S.tolist() for name, level in whole.levels.items() if level.patch}


def test_damaged_or_foreign_progress_is_one_line(worker, tmp_path):
    learner = worker()
    learner.open_night(1)
    learner.seed_step(ROWS, 0, 6)
    learner.save_progress(str(tmp_path / "night"))
    (tmp_path / "cut").write_bytes((tmp_path / "night").read_bytes()[:-5])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("cut", "empty", "none"):
        with pytest.raises(RunError, match=f"{name}: the learner's state cannot be read"):
            learner.restore_progress(str(tmp_path / name), 1, 6)
    tensors = {"steps": torch.ones(()), "generator": torch.Generator().get_state()}
    save_file(tensors, tmp_path / "other")
    with pytest.raises(RunError, match="other: the night's state cannot be read"):
        learner.restore_progress(str(tmp_path / "other"), 1, 6)
