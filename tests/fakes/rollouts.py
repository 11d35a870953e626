"""Workers that hold weights, for the tests of cluster/, importable by path in any process."""

from __future__ import annotations

import os
from typing import Any

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import LoadReport, Weights
from sleep_rl.model.tensor_digest import digest


class CheckingRollout:
    """A Rollout that verifies every tensor of the manifest by digest."""

    def __init__(self, probe_gap: float = 0.0, lies: bool = False) -> None:
        self.states: dict[str, tuple[int, dict[str, Any]]] = {}
        self.loads: list[tuple[str, int, int]] = []  # name, version, tensors in the delta
        self.probe_gap = probe_gap
        self.lies = lies

    def load(self, weights: Weights) -> LoadReport:
        self.loads.append((weights.name, weights.version, len(weights.tensors)))
        mine = {digest(t): t for _, state in self.states.values() for t in state.values()}
        mine |= {digest(t): t for t in weights.tensors.values()}
        missing = [key for key, wanted in weights.manifest.items() if wanted not in mine]
        if missing:
            raise RunError(f"{weights.name} version {weights.version}: missing {missing[0]}")
        self.states[weights.name] = (
            weights.version,
            {k: mine[d] for k, d in weights.manifest.items()},
        )
        return LoadReport(
            weights.name,
            weights.version - self.lies,
            len(weights.tensors),
            weights.nbytes,
            0.0,
            self.probe_gap,
        )

    def value(self, name: str, key: str) -> float:
        return float(self.states[name][1][key].sum())

    def held(self) -> dict[str, int]:
        return {name: version for name, (version, _) in self.states.items()}

    def seen(self) -> list[tuple[str, int, int]]:
        return self.loads

    def pid(self) -> int:
        return os.getpid()

    def drop_caches(self) -> None:
        """Do nothing: this rollout has no caches."""

    def lose_states(self) -> None:
        """Drop all pushed states, as after a restart."""
        self.states = {}
        self.loads = []

    def sample(self, requests_N: list[Any], name: str, version: int, sampling: Any) -> list[Any]:
        raise RunError("this rollout only loads")

    def logprobs(self, requests_N: list[Any], name: str, version: int) -> list[Any]:
        raise RunError("this rollout only loads")

    def close(self) -> None:
        self.lose_states()


class CountingCritic(CheckingRollout):
    """A Critic that answers with its versions and calls; the one named `victim` dies once, at its
    first trial, and one with `drifts` changes its own weights by a trial.
    """

    def __init__(
        self, name: str = "", victim: str = "", path: str = "", drifts: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        self.victim = victim
        self.path = path
        self.drifts = drifts
        self.tried = 0

    def try_out(self, trials_N: list[Any], name: str, version: int, sampling: Any) -> list[Any]:
        if self.name == self.victim and not os.path.exists(self.path):
            open(self.path, "w").close()
            os._exit(3)
        if self.states.get(name, (-1,))[0] < version:
            raise RunError(f"{name} version {version} is not held here")
        self.tried += len(trials_N)
        fill = int(self.value(name, next(iter(self.states[name][1]))))
        return [((trial.seed, fill),) for trial in trials_N]

    def digest(self) -> str:
        return f"{sorted(self.states)} {self.tried if self.drifts else 0}"


class AnsweringRollout:
    """A Rollout whose results come from a function of a test."""

    def __init__(self, answer):
        self.answer = answer

    def sample(self, requests_N, name, version, sampling):
        return self.answer(requests_N, name, version)

    def logprobs(self, requests_N, name, version):
        return self.answer(requests_N, name, version)
