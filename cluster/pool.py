"""Several workers of one role: work is split over them, and what a lost worker owed comes back as Failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cluster.group import Handle, WorkerDied, WorkerLate, settle
from sleep_rl.contracts import Failure, InputError, Pair, Reward, RunError

T = TypeVar("T")
R = TypeVar("R")


class Pool:
    """Workers that any item may go to. `workers` are those in use; `lost` says why each other one is not.

    A worker that dies or is late is taken out, since a late one is in the middle of a call that nobody waits for any
    more; `restart_lost` brings them back. An exception that a worker raises is raised here: it is an error of the
    call, not of the worker.
    """

    keeps_late = False

    def __init__(self, role: str, handles: Sequence[Handle], timeout_s: float) -> None:
        self.role, self.timeout_s = role, timeout_s
        self.workers = list(handles)
        self.lost: dict[str, str] = {}
        self._handles = list(handles)

    def map(self, method: Callable[..., list[R]], items: Sequence[T], /, *args: Any,
            **kwargs: Any) -> list[R | Failure]:
        """`method(items, *args)` over the workers; one result per item, in order.

        Each worker gets one contiguous part, and the parts differ by one item at most, so that equal prompts stay
        together. Raises RunError when every worker that was asked is lost.
        """
        return self._map(method, items, args, kwargs, bear_all=False)

    def map_again(self, revive: Callable[[], None], method: Callable[..., list[R]], items: Sequence[T], /, *args: Any,
                  **kwargs: Any) -> list[R | Failure]:
        """Like `map`; but after workers were lost `revive` is called, and what they owed is asked once more, of all."""
        results = self._map(method, items, args, kwargs, bear_all=True)
        owed = [i for i, result in enumerate(results) if isinstance(result, Failure) and result.where in self.lost]
        if owed:
            revive()
            again = self.map(method, [items[i] for i in owed], *args, **kwargs)
            for i, result in zip(owed, again, strict=True):
                results[i] = result
        return results

    def _map(self, method: Callable[..., list[R]], items: Sequence[T], args: tuple, kwargs: dict,
             bear_all: bool) -> list[R | Failure]:
        parts = split(items, len(self._usable()))
        handles = self.workers[:len(parts)]
        answers = self.ask(handles, method, [(part, *args) for part in parts], **kwargs)
        return self._join(handles, method.__name__, parts, answers, bear_all)

    def all(self, method: Callable[..., R], /, *args: Any, **kwargs: Any) -> list[R]:
        """The same call on every worker; raises the first error, in the order of the workers."""
        handles = list(self._usable())
        answers = self.ask(handles, method, [args] * len(handles), **kwargs)
        for answer in answers:
            if isinstance(answer, InputError | RunError):
                raise answer
        return answers

    def ask(self, handles: Sequence[Handle], method: Callable[..., R], args_N: Sequence[tuple[Any, ...]],
            **kwargs: Any) -> list[R | InputError | RunError]:
        """One call per handle, all at once, under one deadline: what each gave or raised. Takes out lost workers."""
        answers = settle([handle.start(method, *args, **kwargs) for handle, args in zip(handles, args_N)],
                         self.timeout_s, stacks=not self.keeps_late)
        for handle, answer in zip(handles, answers):
            if isinstance(answer, WorkerDied) or isinstance(answer, WorkerLate) and not self.keeps_late:
                self.lost[handle.name] = str(answer)
        self.workers = [handle for handle in self.workers if handle.name not in self.lost]
        return answers

    def restart_lost(self, prepare: Callable[[list[Handle]], None] | None = None) -> list[Handle]:
        """Starts the lost workers anew and takes them back into use, after `prepare` (for rollouts WeightStore.refill:
        a new worker holds no pushed weights)."""
        handles = [handle for handle in self._handles if handle.name in self.lost]
        for handle in handles:
            handle.restart()
        for handle in handles:
            handle.ready()
        if prepare:
            prepare(handles)
        self.workers, self.lost = list(self._handles), {}
        return handles

    def _usable(self) -> list[Handle]:
        if not self.workers:
            raise RunError(f"{self.role}: no worker left: {'; '.join(self.lost.values())}")
        return self.workers

    def _join(self, handles: Sequence[Handle], method: str, parts: Sequence[Sequence[T]],
              answers: Sequence[Any], bear_all: bool) -> list[R | Failure]:
        results: list[R | Failure] = []
        for handle, part, answer in zip(handles, parts, answers):
            if isinstance(answer, WorkerDied | WorkerLate):
                results += [Failure(str(answer), handle.name)] * len(part)
            elif isinstance(answer, InputError | RunError):
                raise answer
            elif len(answer) != len(part):
                raise RunError(f"worker {handle.name}: {method} gave {len(answer)} results for {len(part)} items")
            else:
                results += answer
        if handles and not (self.keeps_late or bear_all) and all(isinstance(a, WorkerDied | WorkerLate) for a in answers):
            raise RunError(f"{self.role}: every worker failed: {'; '.join(str(a) for a in answers)}") from answers[0]
        return results


class RewardPool(Pool):
    """Reward workers under the limit of reward.timeout_s: a late or dead one costs the pairs of that call only, and a
    late one stays in use. Stands where a Reward is asked for."""

    keeps_late = True

    def __init__(self, handles: Sequence[Handle], timeout_s: float) -> None:
        super().__init__("rewards", handles, timeout_s)

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """A value per pair, or why there is none."""
        return self.map(Reward.score, pairs_N)

    def close(self) -> None:
        """Closes every worker that is left."""
        if self.workers:
            self.all(Reward.close)


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Contiguous parts in order, none empty, whose lengths differ by one at most."""
    parts = min(parts, len(items))
    bounds = [len(items) * i // parts for i in range(parts + 1)] if parts else [0]
    return [items[low:high] for low, high in zip(bounds, bounds[1:])]
