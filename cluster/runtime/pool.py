"""A pool of workers of one role: it splits work over them and restarts failed ones."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.runtime.handle import CallResult, Handle, WorkerDied, WorkerTimeout, settle
from sleep_rl.contracts.errors import Failure, InputError, RunError

T = TypeVar("T")
R = TypeVar("R")


class Unfinished(Failure):
    """An item that a failed worker did not complete; another worker can."""


class Pool:
    """Interchangeable workers: any item may go to any of them.

    `workers` are in use; `failed` maps the name of each other one to the reason. A worker that
    dies, misses its deadline or returns an invalid response leaves the pool (after a timeout it may
    still run the abandoned call); `restart_failed` brings it back. An exception that a worker
    raises is raised here: it is an error of the call, not of the worker.

    `lock` guards the list of workers against threads that restart, add or remove some.
    """

    keeps_late = False  # whether a worker whose call timed out stays in use
    errors_are_failures = False  # whether a call that raised gives Failures instead of an exception

    def __init__(
        self,
        role: str,
        handles: Sequence[Handle],
        timeout_s: float,
        on_restart: Callable[[str, str], None] = lambda worker, reason: None,
    ) -> None:
        """Create a pool of workers that were started. `timeout_s`: of each call;
        `on_restart(worker, reason)`: called before each restart, may raise to forbid it (see
        Restarts.count).
        """
        self.role = role
        self.timeout_s = timeout_s
        self.workers = list(handles)
        self.failed: dict[str, str] = {}
        self.lock = threading.RLock()
        self._handles = list(handles)
        self._on_restart = on_restart
        self._prepare: Callable[[list[Handle]], Any] = lambda handles: None

    def map(
        self, method: Callable[..., list[R]], items: Sequence[T], /, *args: Any, **kwargs: Any
    ) -> list[R | Failure]:
        """Return the results of `method(items, *args)`, one per item, in order.

        Each worker gets one contiguous part of the items, and lengths differ by one at most: equal
        prompts stay together. Raises RunError when every worker that was called failed.
        """
        return self._map(method, items, args, kwargs, all_may_fail=False)

    def map_with_retry(
        self, method: Callable[..., list[R]], items: Sequence[T], /, *args: Any, **kwargs: Any
    ) -> list[R | Failure]:
        """Return what `map` does; items that a failed worker did not complete are retried once,
        over all workers, after `restart_failed`.
        """
        results = self._map(method, items, args, kwargs, all_may_fail=True)
        unfinished = [i for i, result in enumerate(results) if isinstance(result, Unfinished)]
        if unfinished:
            self.restart_failed()
            retried = self.map(method, [items[i] for i in unfinished], *args, **kwargs)
            for i, result in zip(unfinished, retried, strict=True):
                results[i] = result
        return results

    def call_all(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> list[R]:
        """Make the same call on every worker. Return the results, in the workers' order; raise the
        first error.
        """
        handles = self._in_use()
        results = self.call(handles, method, [args] * len(handles), **kwargs)
        for result in results:
            if isinstance(result, InputError | RunError):
                raise result
        return results

    def call(
        self,
        handles: Sequence[Handle],
        method: Callable[..., R],
        args_N: Sequence[tuple[Any, ...]],
        **kwargs: Any,
    ) -> list[CallResult[R]]:
        """Make one call per handle concurrently, under one deadline; `args_N`: arguments of each.

        Returns what each call returned or raised. Workers that died or timed out leave the pool.
        """
        pendings = [
            handle.start(method, *args, **kwargs)
            for handle, args in zip(handles, args_N, strict=True)
        ]
        results = settle(pendings, self.timeout_s, stacks=not self.keeps_late)
        for handle, result in zip(handles, results, strict=True):
            late = isinstance(result, WorkerTimeout) and not self.keeps_late
            if late or isinstance(result, WorkerDied):
                self._fail(handle, str(result))
        return results

    def invalid_response(self, part: Sequence[Any], response: Any, *args: Any) -> str:
        """Return what is wrong with the response to the items `part`; empty when it is valid.

        `args`: the further arguments of the call.
        """
        if not isinstance(response, list):
            return f"a {type(response).__name__} instead of a list"
        if len(response) != len(part):
            return f"{len(response)} results for {len(part)} items"
        return ""

    def prepare_restarted_with(self, prepare: Callable[[list[Handle]], Any]) -> None:
        """Set the function that is called on restarted workers before they are used
        (WeightStore.refill: a new worker holds no pushed weights).
        """
        self._prepare = prepare

    def restart_failed(self) -> list[Handle]:
        """Restart the failed workers, put them back into use, and return them: none, when another
        thread has done so already.
        """
        with self.lock:
            handles = [handle for handle in self._handles if handle.name in self.failed]
            for handle in handles:
                self._on_restart(handle.name, self.failed[handle.name])
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
        """Add a worker to the pool."""
        with self.lock:
            self._handles = [*self._handles, handle]
            self.workers = [*self.workers, handle]

    def remove(self, count: int) -> list[Handle]:
        """Remove the last `count` workers, but never all, from the pool and return them; their
        calls in flight still complete.
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
        workers = self._in_use()  # read once: another thread may change the list
        parts = split(items, len(workers))
        handles = workers[: len(parts)]
        responses: list[Any] = self.call(
            handles, method, [(part, *args) for part in parts], **kwargs
        )
        for i, handle in enumerate(handles):
            if isinstance(responses[i], Exception):
                continue
            wrong = self.invalid_response(parts[i], responses[i], *args)
            if wrong:
                responses[i] = WorkerDied(
                    f"worker {handle.name}: {method.__name__} returned {wrong}"
                )
                self._fail(handle, str(responses[i]))
        results: list[R | Failure] = []
        for handle, part, response in zip(handles, parts, responses, strict=True):
            results += self._results(handle, part, response)
        if not (self.keeps_late or all_may_fail):
            self._raise_if_all_failed(responses)
        return results

    def _results(self, handle: Handle, part: Sequence[T], response: Any) -> list[R | Failure]:
        """Return one result per item of a part; raise what is an error of the call."""
        if isinstance(response, WorkerTimeout) and self.keeps_late:
            return [Failure(str(response), handle.name)] * len(part)
        if isinstance(response, WorkerDied | WorkerTimeout):
            return [Unfinished(str(response), handle.name)] * len(part)
        if isinstance(response, RunError) and self.errors_are_failures:
            return [Failure(str(response), handle.name)] * len(part)
        if isinstance(response, InputError | RunError):
            raise response
        return response

    def _raise_if_all_failed(self, responses: Sequence[Any]) -> None:
        """Raise RunError if every worker that was called failed."""
        failed = [r for r in responses if isinstance(r, WorkerDied | WorkerTimeout)]
        if failed and len(failed) == len(responses):
            reasons = "; ".join(map(str, failed))
            raise RunError(f"{self.role}: every worker failed: {reasons}") from failed[0]

    def _in_use(self) -> list[Handle]:
        workers = list(self.workers)
        if not workers:
            raise RunError(f"{self.role}: no worker is left: {'; '.join(self.failed.values())}")
        return workers

    def _fail(self, handle: Handle, reason: str) -> None:
        """Remove a worker from `workers` and record why."""
        self.failed[handle.name] = reason
        self.workers = [worker for worker in self.workers if worker.name not in self.failed]


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Return at most `parts` contiguous, non-empty slices whose lengths differ by one at most."""
    parts = min(parts, len(items))
    if not parts:
        return []
    bounds = [len(items) * i // parts for i in range(parts + 1)]
    return [items[low:high] for low, high in itertools.pairwise(bounds)]
