"""Several workers of one role: work is split over them, and what a lost worker owed comes back as
Failure.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.ray_backend import Handle, WorkerDied, WorkerLate, settle
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import Pair, Request, Sample, Sampling
from sleep_rl.contracts.roles import Reward, Rollout

T = TypeVar("T")
R = TypeVar("R")


class Unfinished(Failure):
    """What a worker that was lost has not done; it may be asked for again."""


class Pool:
    """Workers that any item may go to. `workers` are those in use; `lost` says why each other one
    is not.

    A worker that dies, is late or answers with rubbish is taken out (a late one is in the middle of
    a call that nobody waits for any more); `restart_lost` brings them back. An exception that a
    worker raises is raised here: it is an error of the call, not of the worker.
    """

    keeps_late = False  # a late worker stays in use
    bears_errors = False  # what a call that raised was to give is a Failure

    def __init__(self, role: str, handles: Sequence[Handle], timeout_s: float) -> None:
        self.role, self.timeout_s = role, timeout_s
        self.workers = list(handles)
        self.lost: dict[str, str] = {}
        self._handles = list(handles)

    def map(
        self, method: Callable[..., list[R]], items: Sequence[T], /, *args: Any, **kwargs: Any
    ) -> list[R | Failure]:
        """`method(items, *args)` over the workers; one result per item, in order.

        Each worker gets one contiguous part, and the parts differ by one item at most, so that
        equal prompts stay together. Raises RunError when every worker that was asked is lost.
        """
        return self._map(method, items, args, kwargs, bear_all=False)

    def map_again(
        self,
        revive: Callable[[], None],
        method: Callable[..., list[R]],
        items: Sequence[T],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> list[R | Failure]:
        """Like `map`; but after workers were lost `revive` is called, and what they owed is asked
        once more, of all. (By then another thread may have brought them back; `revive` is to do
        nothing in that case.)
        """
        results = self._map(method, items, args, kwargs, bear_all=True)
        owed = [i for i, result in enumerate(results) if isinstance(result, Unfinished)]
        if owed:
            revive()
            again = self.map(method, [items[i] for i in owed], *args, **kwargs)
            for i, result in zip(owed, again, strict=True):
                results[i] = result
        return results

    def _map(
        self,
        method: Callable[..., list[R]],
        items: Sequence[T],
        args: tuple,
        kwargs: dict,
        bear_all: bool,
    ) -> list[R | Failure]:
        workers = self._usable()  # once: another thread may add or lose some
        parts = split(items, len(workers))
        handles = workers[: len(parts)]
        answers = self.ask(handles, method, [(part, *args) for part in parts], **kwargs)
        for i, (handle, part, answer) in enumerate(zip(handles, parts, answers)):
            wrong = "" if isinstance(answer, Exception) else self.rubbish(part, answer, *args)
            if wrong:
                answers[i] = WorkerDied(f"worker {handle.name}: {method.__name__} gave {wrong}")
                self._lose(handle, str(answers[i]))
        return self._join(handles, parts, answers, bear_all)

    def rubbish(self, part: Sequence[T], answer: Any, *args: Any) -> str:
        """What is wrong with an answer as a whole; empty when it can be used."""
        if not isinstance(answer, list):
            return f"a {type(answer).__name__} and no list"
        return "" if len(answer) == len(part) else f"{len(answer)} results for {len(part)} items"

    def all(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> list[R]:
        """The same call on every worker; raises the first error, in the order of the workers."""
        handles = list(self._usable())
        answers = self.ask(handles, method, [args] * len(handles), **kwargs)
        for answer in answers:
            if isinstance(answer, InputError | RunError):
                raise answer
        return answers

    def ask(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[R | InputError | RunError]:
        """One call per handle, all at once, under one deadline: what each gave or raised. Takes out
        lost workers.
        """
        answers = settle(
            [handle.start(method, *args, **kwargs) for handle, args in zip(handles, args_N)],
            self.timeout_s,
            stacks=not self.keeps_late,
        )
        for handle, answer in zip(handles, answers):
            if isinstance(answer, WorkerDied) or (
                isinstance(answer, WorkerLate) and not self.keeps_late
            ):
                self._lose(handle, str(answer))
        return answers

    def _lose(self, handle: Handle, reason: str) -> None:
        self.lost[handle.name] = reason
        self.workers = [other for other in self.workers if other.name not in self.lost]

    def restart_lost(self, prepare: Callable[[list[Handle]], None] | None = None) -> list[Handle]:
        """Starts the lost workers anew and takes them back into use, after `prepare` (for rollouts
        WeightStore.refill: a new worker holds no pushed weights).
        """
        handles = [handle for handle in self._handles if handle.name in self.lost]
        for handle in handles:
            handle.restart()
        for handle in handles:
            handle.ready()
        if prepare:
            prepare(handles)
        self.workers, self.lost = list(self._handles), {}
        return handles

    def add(self, handle: Handle) -> None:
        """Takes one more worker into use."""
        self._handles, self.workers = [*self._handles, handle], [*self.workers, handle]

    def remove(self, count: int) -> list[Handle]:
        """Takes the last `count` workers out of use, but never all; calls under way are still
        answered.
        """
        gone = self.workers[max(len(self.workers) - count, 1) :] if count else []
        self.workers = [handle for handle in self.workers if handle not in gone]
        self._handles = [handle for handle in self._handles if handle not in gone]
        return gone

    def _usable(self) -> list[Handle]:
        workers = list(self.workers)
        if not workers:
            raise RunError(f"{self.role}: no worker left: {'; '.join(self.lost.values())}")
        return workers

    def _join(
        self,
        handles: Sequence[Handle],
        parts: Sequence[Sequence[T]],
        answers: Sequence[Any],
        bear_all: bool,
    ) -> list[R | Failure]:
        results: list[R | Failure] = []
        for handle, part, answer in zip(handles, parts, answers):
            if isinstance(answer, WorkerDied | WorkerLate):
                lost = not (self.keeps_late and isinstance(answer, WorkerLate))
                results += [(Unfinished if lost else Failure)(str(answer), handle.name)] * len(part)
            elif isinstance(answer, RunError) and self.bears_errors:
                results += [Failure(str(answer), handle.name)] * len(part)
            elif isinstance(answer, InputError | RunError):
                raise answer
            else:
                results += answer
        if (
            handles
            and not (self.keeps_late or bear_all)
            and all(isinstance(a, WorkerDied | WorkerLate) for a in answers)
        ):
            raise RunError(
                f"{self.role}: every worker failed: {'; '.join(str(a) for a in answers)}"
            ) from answers[0]
        return results


class RolloutPool(Pool):
    """Rollout workers. A sample that does not belong to its request, or to the version that was
    asked for, is rubbish.
    """

    def __init__(
        self, handles: Sequence[Handle], timeout_s: float, slice_s: float | None = None
    ) -> None:
        """`slice_s`: seconds after which a worker that samples takes up what else it was asked,
        above all newer weights; None: when it is done.
        """
        super().__init__("rollouts", handles, timeout_s)
        self._slice_s = slice_s

    def ask(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[R | InputError | RunError]:
        if method is not Rollout.sample or self._slice_s is None:
            return super().ask(handles, method, args_N, **kwargs)
        until = time.monotonic() + self.timeout_s
        answers: list[Any] = super().ask(handles, Rollout.begin, args_N, **kwargs)
        while under_way := [i for i, answer in enumerate(answers) if answer is None]:
            late = time.monotonic() > until
            given = (
                [
                    WorkerLate(
                        f"worker {handles[i].name} gave no samples within {self.timeout_s:g} s"
                    )
                    for i in under_way
                ]
                if late
                else super().ask(
                    [handles[i] for i in under_way],
                    Rollout.more,
                    [(self._slice_s,)] * len(under_way),
                )
            )
            for i, answer in zip(under_way, given, strict=True):
                answers[i] = answer
                if late:
                    self._lose(handles[i], str(answer))
        return answers

    def sample(
        self,
        revive: Callable[[], None],
        requests_N: list[Request],
        name: str,
        version: int,
        how: Sampling,
    ) -> list[Sample | Failure]:
        """One Sample or Failure per request, in order; what a lost worker owed is asked once
        more.
        """
        return self.map_again(revive, Rollout.sample, requests_N, name, version, how)

    def rubbish(self, part: Sequence[Any], answer: Any, *args: Any) -> str:
        wrong = super().rubbish(part, answer)
        name, version = args[0], args[1]
        for request, sample in zip(part, () if wrong else answer):
            if isinstance(sample, Failure):
                continue
            if not isinstance(sample, Sample):
                return f"a {type(sample).__name__} and no sample"
            asked, got = ((s.prompt_T, s.context_T, s.seed) for s in (request, sample))
            if asked != got:
                return "a sample of another request"
            if sample.weights != name or min(sample.versions_T, default=version) < version:
                return f"a sample of {sample.weights} {sorted(set(sample.versions_T))}, asked was {name} {version}"
            if not len(sample.completion_T) == len(sample.logprobs_T) == len(sample.versions_T):
                return "a sample whose tokens, log-probabilities and versions differ in number"
        return wrong


class RewardPool(Pool):
    """Reward workers under the limit of reward.timeout_s. A call that raises costs its pairs only,
    and so does a late one, which stays in use; one that is late twice in a row, has died, or gave
    values outside [0, 1] is started anew, and what the latter two owed is asked once more. Stands
    where a Reward is asked for.
    """

    keeps_late = bears_errors = True

    def __init__(
        self,
        handles: Sequence[Handle],
        timeout_s: float,
        spend: Callable[[str, str], None] = lambda worker, reason: None,
    ) -> None:
        """`spend` is told of each restart beforehand, and raises when there may be no more."""
        super().__init__("rewards", handles, timeout_s)
        self._spend, self._late = spend, dict.fromkeys((handle.name for handle in handles), 0)

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """A value per pair, or why there is none."""
        values = self.map_again(self._revive, Reward.score, pairs_N)
        if self.lost:
            self._revive()
        return values

    def ask(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[R | InputError | RunError]:
        answers = super().ask(handles, method, args_N, **kwargs)
        for handle, answer in zip(handles, answers):
            self._late[handle.name] = (
                self._late[handle.name] + 1 if isinstance(answer, WorkerLate) else 0
            )
            if self._late[handle.name] == 2:
                self._lose(handle, f"{answer}, twice in a row")
        return answers

    def rubbish(self, part: Sequence[Any], answer: Any, *args: Any) -> str:
        wrong = super().rubbish(part, answer)
        for value in () if wrong else answer:
            if not isinstance(value, Failure) and not (
                isinstance(value, int | float) and 0 <= value <= 1
            ):
                return f"the reward {value!r}, allowed is [0, 1]"  # also refuses NaN
        return wrong

    def _revive(self) -> None:
        for worker, reason in self.lost.items():
            self._spend(worker, reason)
        self.restart_lost()

    def close(self) -> None:
        """Closes every worker that is left."""
        if self.workers:
            self.all(Reward.close)


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Contiguous parts in order, none empty, whose lengths differ by one at most."""
    parts = min(parts, len(items))
    bounds = [len(items) * i // parts for i in range(parts + 1)] if parts else [0]
    return [items[low:high] for low, high in itertools.pairwise(bounds)]
