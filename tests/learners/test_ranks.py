"""A learner group of two ranks on Ray against a single rank, with fillers on the second rank."""

from dataclasses import replace

import numpy as np
import pytest

from cluster.crew import LearnerGroup
from cluster.runtime.local_backend import LocalBackend
from sleep_rl.contracts.records import STUDENT, TEACHER
from tests.fakes.processes import LIMIT_S
from tests.learners.twins import CONFIG, DOCUMENTS, ROWS


def night(backend, checkpoint, world_size, rows, zero_stage, part, mean, resumed_at=None):
    """Run a night with three documents and rows, of which the second of two ranks has one each and
    a filler. It saves its progress before its first and its second step to files, which it reads
    at once on all ranks; or it resumes from that of step `resumed_at`.
    """
    config = replace(
        CONFIG,
        objective=replace(CONFIG.objective, mean=mean),
        learners=replace(
            CONFIG.learners, world_size=world_size, pass_tokens=1, zero_stage=zero_stage
        ),
    )
    handles = backend.spawn_ranks(
        "learners.worker:LearnerWorker",
        {"checkpoint": checkpoint, "config": config},
        name="learner",
        world_size=world_size,
        env={"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    backend.ready(handles)
    learn = LearnerGroup(handles, LIMIT_S)
    wake = learn.wake(DOCUMENTS[:3])
    learn.open_night(1)
    metrics = []
    for step in range(resumed_at or 0, 3):
        saves = resumed_at is None and step < 2
        if saves:
            learn.save_progress(f"{part}-{step}")
        if saves or step == resumed_at:
            learn.restore_progress(f"{part}-{step}", step, 6)
        metrics.append(learn.seed_step(rows, step, 6).metrics)
    weights = learn.export(STUDENT, 1, {}, STUDENT)
    learn.commit_night()
    assert learn.export(TEACHER, 2, weights.manifest, TEACHER).name == TEACHER
    return wake, metrics, {key: np.asarray(tensor) for key, tensor in weights.tensors.items()}


@pytest.mark.stack
@pytest.mark.parametrize(
    "kind, zero_stage, mean",
    [
        ("locked", 1, "sequence"),
        ("locked", 3, "token"),
        # memory in the upper of two layers: each rank keeps the hidden states of its own rows
        ("upper locked", 1, "token"),
        # under ZeRO-3 none does, and the filler is computed through the frozen layer as well
        ("upper locked", 3, "sequence"),
    ],
)
def test_two_ranks_equal_one(kind, zero_stage, mean, sleep_checkpoint, ray_backend, tmp_path):
    path = sleep_checkpoint("qwen3", kind)
    rows = ROWS[:3]
    with LocalBackend() as local:
        one = night(local, path, 1, rows, 1, str(tmp_path / "one"), mean)
    two = night(ray_backend, path, 2, rows, zero_stage, str(tmp_path / "two"), mean)
    continued = []
    for step in (0, 1):  # one rank resumes the progress of two
        with LocalBackend() as local:
            again = night(local, path, 1, rows, 1, str(tmp_path / "two"), mean, resumed_at=step)
        continued.append(again[2])
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-5)
    for single, pair in zip(one[1], two[1], strict=True):
        assert single["seconds"] > 0 < pair["seconds"]
        untimed = {k: pytest.approx(v, abs=2e-4) for k, v in single.items() if k != "seconds"}
        assert untimed | {"seconds": pair["seconds"]} == pair
    assert set(one[2]) == set(two[2]) == set(continued[0]) == set(continued[1])
    assert any(".layers.0." in key for key in one[2]) == (kind == "locked")
    for key, tensor in one[2].items():
        assert np.allclose(tensor, two[2][key], atol=5e-5), key
        assert np.allclose(tensor, continued[0][key], atol=5e-5), key
        assert np.allclose(tensor, continued[1][key], atol=5e-5), key
