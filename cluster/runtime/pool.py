"""Several workers of one role: work is split over them, and failed workers are restarted."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.handle import Handle, WorkerDied, WorkerLate, settle
from sleep_rl.contracts.errors import Failure, InputError, RunError

T = TypeVar("T")
R = TypeVar("R")
Answer = R | InputError | RunError


class Unfinished(Failure):
    """What a worker that failed has not done; another one can do it."""


class Pool:
    """Workers that any item may go to.

    `workers` are those in use; `failed` says why each other one is not. A worker that dies, misses
    its deadline or returns an invalid response leaves the pool (a late one may still run an
    abandoned call); `restart_failed` brings it back. An exception that a worker raises is raised
    here: it is an error of the call, not of the worker.

    `lock` guards the list of workers against threads that restart, add or remove some.
    """

    keeps_late = False  # whether a late worker stays in use
    errors_are_failures = False  # whether a call that raised gives Failures and no exception

    def __init__(
        self,
        role: str,
        handles: Sequence[Handle],
        timeout_s: float,
        consume: Callable[[str, str], None] = lambda worker, reason: None,
    ) -> None:
        """`consume(worker, reason)`: called before each restart; raises when none is left."""
        self.role = role
        self.timeout_s = timeout_s
        self.workers = list(handles)
        self.failed: dict[str, str] = {}
        self.lock = threading.RLock()
        self._handles = list(handles)
        self._consume = consume
        self._prepare: Callable[[list[Handle]], Any] = lambda handles: None

    def map(
        self, method: Callable[..., list[R]], items: Sequence[T], /, *args: Any, **kwargs: Any
    ) -> list[R | Failure]:
        """Return the results of `method(items, *args)` over the workers, one per item, in order.

        Each worker gets one contiguous part, and the parts differ by one item at most, so that
        equal prompts stay together. Raises RunError when every worker that was asked failed.
        """
        return self._map(method, items, args, kwargs, all_may_fail=False)

    def map_with_retry(
        self, method: Callable[..., list[R]], items: Sequence[T], /, *args: Any, **kwargs: Any
    ) -> list[R | Failure]:
        """Return what `map` does; but items that a failed worker left unfinished are tried once
        more, by all workers, after `restart_failed`.
        """
        results = self._map(method, items, args, kwargs, all_may_fail=True)
        unfinished = [i for i, result in enumerate(results) if isinstance(result, Unfinished)]
        if unfinished:
            self.restart_failed()
            retried = self.map(method, [items[i] for i in unfinished], *args, **kwargs)
            for i, result in zip(unfinished, retried, strict=True):
                results[i] = result
        return results

    def all(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> list[R]:
        """Make the same call on every worker; raise the first error, in their order."""
        handles = self._in_use()
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
    ) -> list[Answer]:
        """Make one call per handle, all at once, under one deadline.

        Returns what each gave or raised. Workers that died or are late leave the pool.
        """
        pendings = [
            handle.start(method, *args, **kwargs)
            for handle, args in zip(handles, args_N, strict=True)
        ]
        answers = settle(pendings, self.timeout_s, stacks=not self.keeps_late)
        for handle, answer in zip(handles, answers, strict=True):
            late = isinstance(answer, WorkerLate) and not self.keeps_late
            if late or isinstance(answer, WorkerDied):
                self._fail(handle, str(answer))
        return answers

    def invalid_response(self, part: Sequence[Any], answer: Any, *args: Any) -> str:
        """Return what is wrong with an answer as a whole; empty when it can be used."""
        if not isinstance(answer, list):
            return f"a {type(answer).__name__} and no list"
        return "" if len(answer) == len(part) else f"{len(answer)} results for {len(part)} items"

    def prepare_restarted_with(self, prepare: Callable[[list[Handle]], Any]) -> None:
        """Call `prepare` on restarted workers before they are used (WeightStore.refill: a new
        worker holds no pushed weights).
        """
        self._prepare = prepare

    def restart_failed(self) -> list[Handle]:
        """Restart the failed workers and take them back into use; return them. Another thread may
        have done so already.
        """
        with self.lock:
            handles = [handle for handle in self._handles if handle.name in self.failed]
            for handle in handles:
                self._consume(handle.name, self.failed[handle.name])
            for handle in handles:
                handle.restart()
            for handle in handles:
                handle.ready()
            if handles:
                self._prepare(handles)
            for handle in handles:
                self.failed.pop(handle.name)
            self.workers = [handle for handle in self._handles if handle.name not in self.failed]
            return handles

    def add(self, handle: Handle) -> None:
        """Take one more worker into use."""
        with self.lock:
            self._handles = [*self._handles, handle]
            self.workers = [*self.workers, handle]

    def remove(self, count: int) -> list[Handle]:
        """Take the last `count` workers out of use, but never all, and return them; calls under way
        are still answered.
        """
        with self.lock:
            removed = self.workers[max(len(self.workers) - count, 1) :] if count else []
            self.workers = [handle for handle in self.workers if handle not in removed]
            self._handles = [handle for handle in self._handles if handle not in removed]
            return removed

    def _map(
        self,
        method: Callable[..., list[R]],
        items: Sequence[T],
        args: tuple,
        kwargs: dict,
        all_may_fail: bool,
    ) -> list[R | Failure]:
        workers = self._in_use()  # once: another thread may add or take out some
        parts = split(items, len(workers))
        handles = workers[: len(parts)]
        answers = self.ask(handles, method, [(part, *args) for part in parts], **kwargs)
        for i, handle in enumerate(handles):
            if isinstance(answers[i], Exception):
                continue
            wrong = self.invalid_response(parts[i], answers[i], *args)
            if wrong:
                answers[i] = WorkerDied(f"worker {handle.name}: {method.__name__} gave {wrong}")
                self._fail(handle, str(answers[i]))
        results: list[R | Failure] = []
        for handle, part, answer in zip(handles, parts, answers, strict=True):
            results += self._results(handle, part, answer)
        if not (self.keeps_late or all_may_fail):
            self._check_any(answers)
        return results

    def _results(self, handle: Handle, part: Sequence[T], answer: Any) -> list[R | Failure]:
        """Return one result per item of a part; raise what is an error of the call."""
        if isinstance(answer, WorkerLate) and self.keeps_late:
            return [Failure(str(answer), handle.name)] * len(part)
        if isinstance(answer, WorkerDied | WorkerLate):
            return [Unfinished(str(answer), handle.name)] * len(part)
        if isinstance(answer, RunError) and self.errors_are_failures:
            return [Failure(str(answer), handle.name)] * len(part)
        if isinstance(answer, InputError | RunError):
            raise answer
        return answer

    def _check_any(self, answers: Sequence[Any]) -> None:
        """Raise RunError if every worker that was asked failed."""
        if answers and all(isinstance(answer, WorkerDied | WorkerLate) for answer in answers):
            reasons = "; ".join(map(str, answers))
            raise RunError(f"{self.role}: every worker failed: {reasons}") from answers[0]

    def _in_use(self) -> list[Handle]:
        workers = list(self.workers)
        if not workers:
            raise RunError(f"{self.role}: no worker left: {'; '.join(self.failed.values())}")
        return workers

    def _fail(self, handle: Handle, reason: str) -> None:
        """Take a worker out of use."""
        self.failed[handle.name] = reason
        self.workers = [worker for worker in self.workers if worker.name not in self.failed]


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Return contiguous parts in order, none empty, whose lengths differ by one at most."""
    parts = min(parts, len(items))
    if not parts:
        return []
    bounds = [len(items) * i // parts for i in range(parts + 1)]
    return [items[low:high] for low, high in itertools.pairwise(bounds)]
