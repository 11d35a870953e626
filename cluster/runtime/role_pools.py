"""Pools of rollout and of reward workers: how their responses are validated and timed out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.handle import CallResult, Handle, WorkerTimeout
from cluster.runtime.pool import Pool
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Pair, Request, Sample, Sampling
from sleep_rl.contracts.roles import Reward, Rollout

R = TypeVar("R")


class RolloutPool(Pool):
    """Rollout workers. A sample of another request, or of an older version than requested, is an
    invalid response.
    """

    def __init__(
        self,
        handles: Sequence[Handle],
        timeout_s: float,
        on_restart: Callable[[str, str], None] = lambda worker, reason: None,
        slice_s: float | None = None,
    ) -> None:
        """Create a pool of rollout workers. `slice_s`: seconds after which a sampling worker
        handles its other pending calls, above all `load` of newer weights; None: when all samples
        are done.
        """
        super().__init__("rollouts", handles, timeout_s, on_restart)
        self._slice_s = slice_s

    def sample(
        self, requests_N: list[Request], name: str, version: int, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order, from state `name` at `version` or
        newer. What a failed worker did not complete is retried once.
        """
        return self.map_with_retry(Rollout.sample, requests_N, name, version, sampling)

    def logprobs(
        self, requests_N: list[Request], name: str, version: int
    ) -> list[tuple[float, ...] | Failure]:
        """Return the log-probabilities of each request's prompt_T, see roles.Rollout. What a failed
        worker did not complete is retried once.
        """
        return self.map_with_retry(Rollout.logprobs, requests_N, name, version)

    def call(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[CallResult[R]]:
        if method is not Rollout.sample or self._slice_s is None:
            return super().call(handles, method, args_N, **kwargs)
        deadline = time.monotonic() + self.timeout_s
        results: list[Any] = super().call(handles, Rollout.begin, args_N, **kwargs)
        while unfinished := [i for i, result in enumerate(results) if result is None]:
            busy = [handles[i] for i in unfinished]
            if time.monotonic() > deadline:
                more = [self._time_out(handle) for handle in busy]
            else:
                more = super().call(busy, Rollout.more, [(self._slice_s,)] * len(busy))
            for i, result in zip(unfinished, more, strict=True):
                results[i] = result
        return results

    def _time_out(self, handle: Handle) -> WorkerTimeout:
        """Remove a worker that did not finish in time from the pool; return the error."""
        error = WorkerTimeout(
            f"worker {handle.name}: sample did not return within {self.timeout_s:g} s "
            "(cluster.call_timeout_s)"
        )
        self._fail(handle, str(error))
        return error

    def invalid_response(self, part: Sequence[Any], response: Any, *args: Any) -> str:
        """Return what is wrong with the samples, or with the log-probabilities; `args`: the
        requested state's name and version, and for samples the sampling parameters.
        """
        wrong = super().invalid_response(part, response)
        if wrong:
            return wrong
        name, version, *sampling = args
        for request, result in zip(part, response, strict=True):
            if sampling:
                wrong = _invalid_sample(request, result, name, version)
            else:
                wrong = _invalid_logprobs(request, result)
            if wrong:
                return wrong
        return ""


def _invalid_sample(request: Request, sample: Any, name: str, version: int) -> str:
    """Return why a sample does not match its request; empty when it does, and for a Failure."""
    if isinstance(sample, Failure):
        return ""
    if not isinstance(sample, Sample):
        return f"a {type(sample).__name__} instead of a Sample"
    requested, sampled = ((s.prompt_T, s.context_T, s.seed) for s in (request, sample))
    if requested != sampled:
        return "a sample of another request"
    if sample.weights != name or min(sample.versions_T, default=version) < version:
        versions = sorted(set(sample.versions_T))
        return f"a sample of {sample.weights} {versions}, requested was {name} {version}"
    if not len(sample.completion_T) == len(sample.logprobs_T) == len(sample.versions_T):
        return "a sample with different numbers of tokens, log-probabilities and versions"
    return ""


def _invalid_logprobs(request: Request, logprobs: Any) -> str:
    """Return why log-probabilities do not match their request; empty when they do."""
    if isinstance(logprobs, Failure):
        return ""
    if not isinstance(logprobs, tuple) or len(logprobs) != len(request.prompt_T):
        return f"{logprobs!r:.60} instead of {len(request.prompt_T)} log-probabilities"
    return ""


class RewardPool(Pool):
    """Implements roles.Reward over several reward workers; `timeout_s`: reward.timeout_s.

    A call that raises or times out gives Failures for its own pairs only, and its worker stays in
    use. A worker that times out twice in a row, dies, or returns a value outside [0, 1] is
    restarted; in the latter two cases its pairs are retried once.
    """

    keeps_late = True
    errors_are_failures = True

    def __init__(
        self,
        handles: Sequence[Handle],
        timeout_s: float,
        on_restart: Callable[[str, str], None] = lambda worker, reason: None,
    ) -> None:
        super().__init__("rewards", handles, timeout_s, on_restart)
        self._timeouts_in_a_row = {handle.name: 0 for handle in handles}

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one value in [0, 1] or Failure per pair, in order."""
        values = self.map_with_retry(Reward.score, pairs_N)
        self.restart_failed()
        return values

    def call(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[CallResult[R]]:
        results = super().call(handles, method, args_N, **kwargs)
        for handle, result in zip(handles, results, strict=True):
            if not isinstance(result, WorkerTimeout):
                self._timeouts_in_a_row[handle.name] = 0
                continue
            self._timeouts_in_a_row[handle.name] += 1
            if self._timeouts_in_a_row[handle.name] == 2:
                self._fail(handle, f"{result}, twice in a row")
        return results

    def invalid_response(self, part: Sequence[Any], response: Any, *args: Any) -> str:
        wrong = super().invalid_response(part, response)
        if wrong:
            return wrong
        invalid = [value for value in response if not _is_reward(value)]
        return f"the reward {invalid[0]!r}, allowed is [0, 1]" if invalid else ""

    def close(self) -> None:
        """Close the workers in use."""
        if self.workers:
            self.call_all(Reward.close)


def _is_reward(value: Any) -> bool:
    if isinstance(value, Failure):
        return True
    return isinstance(value, int | float) and 0 <= value <= 1  # False for NaN
