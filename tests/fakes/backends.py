"""Local backends with other classes in place of vLLM engines and learners, also mortal ones."""

from __future__ import annotations

import random
from typing import Any

from cluster.runtime.handle import Handle, Pending, WorkerDied
from cluster.runtime.local_backend import LocalBackend, LocalChannel

ENGINE = "actors.rollout:RolloutWorker"
SAFE = 20
"""Calls without a death after each restart, because a failed call is retried only once."""
MORTAL = ("sample", "load", "score")
"""Methods in which a worker can die."""


class StandInBackend(LocalBackend):
    """The local backend with the class `rollout` in place of vLLM engines, and with `learner`,
    where it is given, in place of learners.
    """

    def __init__(self, rollout: type, learner: type | None = None) -> None:
        super().__init__()
        self.rollout = rollout
        self.learner = learner
        self.learners: list[Handle] = []

    def spawn(self, cls: Any, kwargs: dict, **rest: Any) -> Handle:
        return super().spawn(self.rollout if cls == ENGINE else cls, kwargs, **rest)

    def spawn_ranks(self, cls: Any, kwargs: dict, **rest: Any) -> list[Handle]:
        self.learners = super().spawn_ranks(self.learner or cls, kwargs, **rest)
        return self.learners


class Died(Pending):
    """The future of a call whose worker died."""

    def ready(self, wait_s: float) -> bool:
        return True

    def outcome(self, wait_s: float, limit_s: float) -> Any:
        raise WorkerDied(f"worker {self.worker} died during {self.method}: injected")


class MortalChannel(LocalChannel):
    """A channel whose worker dies in a share of its calls, before or after the work."""

    def __init__(self, name: str, backend: MortalBackend) -> None:
        super().__init__(name)
        self.backend = backend
        self.dead = False
        backend.calls = 0

    def send(self, verb: Any, label: str, /, *args: Any, **kwargs: Any) -> Pending:
        self.backend.calls += 1
        mortal = self.backend.calls > SAFE and label in MORTAL
        if not self.dead and mortal and self.backend.rng.random() < self.backend.share:
            self.dead = True
            self.backend.deaths += 1
            if self.backend.rng.random() < 0.5:
                # it died after the work, before it returned
                super().send(verb, label, *args, **kwargs)
        if self.dead:
            return Died(self._host.name, label)
        return super().send(verb, label, *args, **kwargs)


class MortalBackend(StandInBackend):
    """Stand-ins that die in a `share` of their calls, and reward workers, too; learners do not."""

    def __init__(self, rollout: type, learner: type, share: float, seed: int = 0) -> None:
        super().__init__(rollout, learner)
        self.share = share
        self.rng = random.Random(seed)
        self.deaths = 0
        self.calls = 0

    def open(self, request: Any) -> LocalChannel:
        if request.name.startswith("learner"):
            return super().open(request)
        self._channels.append(MortalChannel(request.name, self))
        return self._channels[-1]
