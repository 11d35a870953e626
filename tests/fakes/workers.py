"""Plain workers for the tests of cluster/, importable by path in any process."""

from __future__ import annotations

import os
import time
from typing import Any

from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import LoadReport, Pair, Sample, Weights
from sleep_rl.model.tensor_digest import digest


class Echo:
    """A worker whose calls do what a test asks."""

    def __init__(self, greeting: str = "hello", refuse: str = "") -> None:
        if refuse:
            raise InputError(refuse)
        self.greeting = greeting

    def greet(self, name: str, mark: str = ".") -> str:
        return f"{self.greeting} {name}{mark}"

    def env(self, *names: str) -> list[str | None]:
        return [os.environ.get(name) for name in names]

    def pid(self) -> int:
        return os.getpid()

    def double(
        self, items: list[int], hurt: str = "", victim: str = "", seconds: float = 0.0
    ) -> list[int]:
        """Return doubled items; in the worker with greeting `victim` the fault `hurt` comes
        first.
        """
        if victim in ("*", self.greeting):
            {"die": self.die, "sleep": lambda: self.sleep(seconds), "raise": self.type_error}[
                hurt
            ]()
        return [2 * item for item in items]

    def double_if(self, items: list[int], victim: str, path: str) -> list[int]:
        """Return doubled items; the worker with greeting `victim` dies in its first call
        instead.
        """
        if victim in ("*", self.greeting) and not os.path.exists(f"{path}-{self.greeting}"):
            open(f"{path}-{self.greeting}", "w").close()
            self.die()
        return self.double(items)

    def drop_last(self, items: list[int], victim: str) -> list[int]:
        return items[:-1] if victim in ("*", self.greeting) else items

    def total(self, arrays: dict[str, Any]) -> float:
        return float(sum(array.sum() for array in arrays.values()))

    def back(self, value: Any) -> Any:
        return value

    def overwrite(self, arrays: dict[str, Any]) -> None:
        for array in arrays.values():
            array[...] = 7

    def say(self, text: str) -> None:
        print(text, flush=True)
        os.system(f"echo child {text}")

    def input_error(self) -> None:
        raise InputError("key: allowed 1, got 2")

    def run_error(self) -> None:
        raise RunError("loss is NaN at step 3")

    def type_error(self) -> None:
        raise TypeError("an odd\nmessage")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        os._exit(3)


class Scorer:
    """A Reward: 1 for equal tokens. A pair whose student is (0,) takes `slow_s`, one of (1,) fails,
    and a call with one of two tokens raises.
    """

    def __init__(self, slow_s: float = 0.0) -> None:
        self.slow_s = slow_s

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        if any(pair.student_T == (0,) for pair in pairs_N):
            time.sleep(self.slow_s)
        if any(len(pair.student_T) == 2 for pair in pairs_N):
            raise IndexError("no second token")
        return [
            Failure("empty") if p.student_T == (1,) else float(p.student_T == p.teacher_T)
            for p in pairs_N
        ]

    def close(self) -> None:
        self.slow_s = 0.0


class CheckingRollout:
    """A Rollout that verifies every tensor of the manifest by digest."""

    def __init__(self, probe_gap: float = 0.0, lies: bool = False) -> None:
        self.states: dict[str, tuple[int, dict[str, Any]]] = {}
        self.loads: list[tuple[str, int, int]] = []  # name, version, tensors in the delta
        self.probe_gap, self.lies = probe_gap, lies

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

    def forget(self) -> None:
        """Drop all pushed states, as after a restart."""
        self.states, self.loads = {}, []

    def sample(self, requests_N: list[Any], name: str, version: int, sampling: Any) -> list[Any]:
        raise RunError("this rollout only loads")

    def logprobs(self, requests_N: list[Any], name: str, version: int) -> list[Any]:
        raise RunError("this rollout only loads")

    def close(self) -> None:
        self.forget()


class CountingCritic(CheckingRollout):
    """A Critic that answers with its versions and calls; the one named `victim` dies once, at its
    first trial, and one with `drifts` changes its own weights by a trial.
    """

    def __init__(
        self, name: str = "", victim: str = "", path: str = "", drifts: bool = False
    ) -> None:
        super().__init__()
        self.name, self.victim, self.path, self.drifts, self.tried = name, victim, path, drifts, 0

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


class Sliced:
    """A Rollout that samples in `slices` slices of the requested length per batch."""

    def __init__(self, slices: int) -> None:
        self.slices, self.left, self.batch, self.log = slices, 0, (), []

    def begin(self, requests_N: list[Any], name: str, version: int, sampling: Any) -> None:
        if self.left:
            raise RunError("a batch is in flight")
        self.batch, self.left = (requests_N, name, version), self.slices

    def more(self, seconds: float) -> list[Any] | None:
        time.sleep(seconds)
        self.left -= 1
        self.log.append("slice")
        if self.left:
            return None
        requests, name, version = self.batch
        return [
            Sample(r.prompt_T, r.context_T, (1,), (-1.0,), "stop", r.seed, name, (version,))
            for r in requests
        ]

    def load(self, weights: Any) -> None:
        self.log.append("load")

    def seen(self) -> list[str]:
        return self.log
