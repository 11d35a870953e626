"""A rollout worker with the states that its tests push."""

from __future__ import annotations

import pytest

from sleep_rl.model import checkpoints
from sleep_rl.model.memory import tensors_of
from sleep_rl.model.tensor_digest import digest
from tests.fakes.pushes import changed_model, weights_of


@pytest.fixture(scope="module")
def path(sleep_checkpoint) -> str:
    return sleep_checkpoint("qwen3", "dense")


@pytest.fixture(scope="module")
def start(path):
    """The checkpoint in transformers: the worker's state CHECKPOINT."""
    return checkpoints.load(path)


@pytest.fixture(scope="module")
def have(start) -> dict[str, str]:
    return {k: digest(t) for k, t in tensors_of(start).items()}


@pytest.fixture
def worker(rollout, path, start):
    """A worker with teacher v1 (the checkpoint) and student v1 (slot 4 changed), pushed as
    deltas.
    """
    worker = rollout(path)
    base = {k: digest(t) for k, t in tensors_of(start).items()}
    worker.load(weights_of(start, "teacher", 1, base))
    worker.load(weights_of(changed_model(path, 1), "student", 1, base))
    return worker
