"""Small plain workers for the tests of cluster/, importable by path in any process. Their processes
start without torch, in a third of the time.
"""

from __future__ import annotations

import os
import time
from typing import Any

from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import Pair, Sample


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

    def sleep(self, seconds: float, path: str = "") -> None:
        """Sleep, and go on until there is a file at `path`, where one is named."""
        time.sleep(seconds)
        while path and not os.path.exists(path):
            time.sleep(0.05)

    def die(self) -> None:
        os._exit(3)


class Scorer:
    """A Reward: 1 for equal tokens. A pair whose student is (0,) takes `slow_s`, and until there is
    a file at `path` where one is given; one of (1,) fails, a call with one of two tokens raises.
    """

    def __init__(self, slow_s: float = 0.0, path: str = "") -> None:
        self.slow_s = slow_s
        self.path = path

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        if any(pair.student_T == (0,) for pair in pairs_N):
            Echo().sleep(self.slow_s, self.path)
        if any(len(pair.student_T) == 2 for pair in pairs_N):
            raise IndexError("no second token")
        return [
            Failure("empty") if p.student_T == (1,) else float(p.student_T == p.teacher_T)
            for p in pairs_N
        ]

    def pid(self) -> int:
        return os.getpid()

    def close(self) -> None:
        self.slow_s = 0.0
        self.path = ""


class ConstantReward(Scorer):
    """A Reward that returns one value for every pair."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def score(self, pairs_N):
        return [self.value for _ in pairs_N]


class Sliced:
    """A Rollout that samples in `slices` slices of the requested length per batch; where it
    `waits`, a batch ends three slices after the next weights.
    """

    def __init__(self, slices: int, waits: bool = False) -> None:
        self.slices = slices
        self.left = 0
        self.batch = ()
        self.log = []
        self.waits = waits

    def begin(self, requests_N: list[Any], name: str, version: int, sampling: Any) -> None:
        if self.left:
            raise RunError("a batch is in flight")
        self.batch = (requests_N, name, version)
        self.left = self.slices

    def more(self, seconds: float) -> list[Any] | None:
        time.sleep(seconds)
        self.left -= not self.waits
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
        if self.waits:
            self.left = 3
            self.waits = False

    def seen(self) -> list[str]:
        return self.log
