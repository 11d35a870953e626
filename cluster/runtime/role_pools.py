"""Pools of rollout and of reward workers: how their answers are checked and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.handle import Handle, WorkerLate
from cluster.runtime.pool import Answer, Pool
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Pair, Request, Sample, Sampling
from sleep_rl.contracts.roles import Reward, Rollout

R = TypeVar("R")


class RolloutPool(Pool):
    """Rollout workers. A sample that does not belong to its request, or to the version that was
    asked for, is an invalid response.
    """

    def __init__(
        self,
        handles: Sequence[Handle],
        timeout_s: float,
        consume: Callable[[str, str], None] = lambda worker, reason: None,
        slice_s: float | None = None,
    ) -> None:
        """`slice_s`: seconds after which a worker that samples takes up its other calls, above all
        newer weights; None: when it is done.
        """
        super().__init__("rollouts", handles, timeout_s, consume)
        self._slice_s = slice_s

    def sample(
        self, requests_N: list[Request], name: str, version: int, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order, from state `name` at `version` or
        newer. What a failed worker left unfinished is tried once more.
        """
        return self.map_with_retry(Rollout.sample, requests_N, name, version, sampling)

    def ask(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[Answer]:
        if method is not Rollout.sample or self._slice_s is None:
            return super().ask(handles, method, args_N, **kwargs)
        deadline = time.monotonic() + self.timeout_s
        answers: list[Any] = super().ask(handles, Rollout.begin, args_N, **kwargs)
        while under_way := [i for i, answer in enumerate(answers) if answer is None]:
            busy = [handles[i] for i in under_way]
            if time.monotonic() > deadline:
                more = [self._too_late(handle) for handle in busy]
            else:
                more = super().ask(busy, Rollout.more, [(self._slice_s,)] * len(busy))
            for i, answer in zip(under_way, more, strict=True):
                answers[i] = answer
        return answers

    def _too_late(self, handle: Handle) -> WorkerLate:
        """Take a worker out of use that is still not done; return the error."""
        error = WorkerLate(f"worker {handle.name} gave no samples within {self.timeout_s:g} s")
        self._fail(handle, str(error))
        return error

    def invalid_response(self, part: Sequence[Any], answer: Any, *args: Any) -> str:
        """Return what is wrong with samples; `args`: the state's name and version, ..."""
        wrong = super().invalid_response(part, answer)
        if wrong:
            return wrong
        name, version = args[:2]
        for request, sample in zip(part, answer, strict=True):
            if wrong := _invalid_sample(request, sample, name, version):
                return wrong
        return ""


def _invalid_sample(request: Request, sample: Any, name: str, version: int) -> str:
    """Return why a sample does not answer its request; empty for a Failure, too."""
    if isinstance(sample, Failure):
        return ""
    if not isinstance(sample, Sample):
        return f"a {type(sample).__name__} and no sample"
    asked, answered = ((s.prompt_T, s.context_T, s.seed) for s in (request, sample))
    if asked != answered:
        return "a sample of another request"
    if sample.weights != name or min(sample.versions_T, default=version) < version:
        versions = sorted(set(sample.versions_T))
        return f"a sample of {sample.weights} {versions}, asked was {name} {version}"
    if not len(sample.completion_T) == len(sample.logprobs_T) == len(sample.versions_T):
        return "a sample whose tokens, log-probabilities and versions differ in number"
    return ""


class RewardPool(Pool):
    """Reward workers under the limit of reward.timeout_s. Stands where a Reward is asked for.

    A call that raises fails its pairs only, and so does a late one, whose worker stays in use. A
    worker that is late twice in a row, has died, or gave values outside [0, 1] is restarted, and
    what the latter two left unfinished is tried once more.
    """

    keeps_late = True
    errors_are_failures = True

    def __init__(
        self,
        handles: Sequence[Handle],
        timeout_s: float,
        consume: Callable[[str, str], None] = lambda worker, reason: None,
    ) -> None:
        super().__init__("rewards", handles, timeout_s, consume)
        self._late_in_a_row = {handle.name: 0 for handle in handles}

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return a value per pair, or why there is none."""
        values = self.map_with_retry(Reward.score, pairs_N)
        self.restart_failed()
        return values

    def ask(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[Answer]:
        answers = super().ask(handles, method, args_N, **kwargs)
        for handle, answer in zip(handles, answers, strict=True):
            if not isinstance(answer, WorkerLate):
                self._late_in_a_row[handle.name] = 0
                continue
            self._late_in_a_row[handle.name] += 1
            if self._late_in_a_row[handle.name] == 2:
                self._fail(handle, f"{answer}, twice in a row")
        return answers

    def invalid_response(self, part: Sequence[Any], answer: Any, *args: Any) -> str:
        wrong = super().invalid_response(part, answer)
        if wrong:
            return wrong
        invalid = [value for value in answer if not _is_reward(value)]
        return f"the reward {invalid[0]!r}, allowed is [0, 1]" if invalid else ""

    def close(self) -> None:
        """Close every worker that is left."""
        if self.workers:
            self.all(Reward.close)


def _is_reward(value: Any) -> bool:
    if isinstance(value, Failure):
        return True
    return isinstance(value, int | float) and 0 <= value <= 1  # False for NaN
