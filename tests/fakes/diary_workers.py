"""A rollout worker and a learner of a life of the Diary, whose weights are a digest of all training
calls.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import CHECKPOINT, Sample, StepResult, Weights
from sleep_rl.text.codec import PromptCodec
from tests.fakes.crew import Crew
from tests.fakes.exports import export
from tests.fakes.rollouts import CheckingRollout
from tests.fakes.texts import Diary, StableWords


class DiaryRollout(CheckingRollout):
    """A Rollout that samples like the fake Crew, from the states that it holds."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.states = {CHECKPOINT: (0, {})}  # as every engine: the untouched base

    def sample(self, requests_N: list, name: str, version: int, sampling: Any) -> list[Sample]:
        held = self._held(name, version)
        crew = Crew(PromptCodec(Diary(), StableWords()))
        samples = [crew.answer(request, name) for request in requests_N]
        return [replace(s, versions_T=(held,) * len(s.completion_T)) for s in samples]

    def logprobs(self, requests_N: list, name: str, version: int) -> list[tuple[float, ...]]:
        self._held(name, version)
        return [(-1.0,) * len(request.prompt_T) for request in requests_N]

    def _held(self, name: str, version: int) -> int:
        """Return the version that is held; raise RunError if it is older than `version`."""
        if self.held().get(name, -1) < version:
            raise RunError(f"{name} {version} is not held, but {self.held()}")
        return self.held()[name]


class DigestLearner:
    """A Learner whose weights are a digest of all training calls."""

    def __init__(self, **_: Any) -> None:
        self.calls_digest = hashlib.sha256()
        self.steps = 0

    def wake(self, documents_N: list) -> dict[str, float]:
        return {"loss": 1.0, "updates": 1.0}

    def open_night(self, receiver: int, due: tuple = (), slot: str = "next") -> int:
        return 1

    def seed_step(self, batch_N: list, step: int, steps: int) -> StepResult:
        self.steps += 1
        self.calls_digest.update(repr((batch_N, step)).encode())
        return StepResult(dict(Crew.step_metrics), [0.1] * len(batch_N))

    def commit_night(self) -> None:
        pass

    def export(self, name: str, version: int, have: dict[str, str], view: str) -> Weights:
        number = int(self.calls_digest.hexdigest()[:6], 16) if view == "student" else version
        full = {"a#1": torch.tensor([float(number)]), "b#1": torch.ones(2)}
        return export(name, version, full, have)

    def digest(self) -> tuple[str, int]:
        """Return the digest of all training calls, and their number."""
        return self.calls_digest.hexdigest(), self.steps

    def save_state(self, tag: str) -> None:
        pass

    load_state = save_checkpoint = save_memory = load_checkpoint = save_state

    def close(self) -> None:
        pass
