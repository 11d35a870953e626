"""Schedule sampling, training and pushes in one consolidation (paper.md section 3 b): in turns, or
concurrently with rollouts ahead of the learner.

The rollouts of round n use version n of the student (after n rounds of steps) or one of the `lag`
versions before it. With lag 0 rollouts, learner and push take turns; otherwise three loops run
concurrently:

rollouts   consume versions, wait for version n - lag, are unblocked by a push, produce rounds
learner    consumes rounds in order, each once, waits for the next, is unblocked by the rollouts
pushes     consume exported states in order, wait for the workers to verify them, produce versions

The queue between rollouts and learner has at most lag + 1 rounds, because a round is sampled only
after its version was verified; no sampled round is dropped. An error in any loop ends all three.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from sleep_rl.contracts.errors import RunError

R = TypeVar("R")
"""A sampled round; its content is not used in this module."""
NumberedSteps = tuple[int, range]
"""Number of a round, and its optimizer steps."""

JOIN_S = 60.0  # limit for the end of a loop that is inside a call


@dataclass(frozen=True)
class Flow(Generic[R]):
    """The functions that the loops call, and the limit of their waits."""

    title: str  # of the consolidation, for errors
    sample: Callable[[int, range], R]  # (number of the round, its optimizer steps) -> round
    push: Callable[[], None]
    push_async: Callable[[], Callable[[], None]]  # exports; the returned function delivers
    # Called after each round with (round, seconds trained, seconds that the learner waited, seconds
    # that the rollouts waited).
    trained: Callable[[R, float, float, float], None]
    limit_s: float  # of one wait: a call, a restart and the repeated call


def run_rounds(flow: Flow[R], rounds: list[NumberedSteps], lag: int) -> Iterator[R]:
    """Yield the sampled rounds in order; the caller trains on each before it takes the next.

    The student is pushed after each round, and the samples of a round are at most `lag` versions
    old. The caller must close the iterator (contextlib.closing). Raises RunError when `limit_s` is
    exceeded, and any exception of a loop.
    """
    return _ahead(flow, rounds, lag) if lag else _in_turn(flow, rounds)


def _in_turn(flow: Flow[R], rounds: list[NumberedSteps]) -> Iterator[R]:
    pushed_s = 0.0
    for number, steps in rounds:
        began = time.monotonic()
        sampled = flow.sample(number, steps)
        sampled_s = time.monotonic() - began
        yield sampled
        trained_s = time.monotonic() - began - sampled_s
        flow.trained(sampled, trained_s, sampled_s + pushed_s, trained_s + pushed_s)
        began = time.monotonic()
        flow.push()
        pushed_s = time.monotonic() - began


def _ahead(flow: Flow[R], rounds: list[NumberedSteps], lag: int) -> Iterator[R]:
    loops = _Loops(flow, rounds, lag)
    loops.start()
    try:
        for _ in rounds:
            began = time.monotonic()
            sampled, rollouts_waited_s = loops.next_round()
            learner_waited_s = time.monotonic() - began
            began = time.monotonic()
            yield sampled
            trained_s = time.monotonic() - began
            flow.trained(sampled, trained_s, learner_waited_s, rollouts_waited_s)
            # The export is delivered while the next round trains.
            loops.exports.put(flow.push_async())
        loops.versions.wait(len(rounds), "the last push")
    finally:
        loops.stop()


class _Loops(Generic[R]):
    """The loops of rollouts and pushes, each in a thread; the caller is the learner's loop."""

    def __init__(self, flow: Flow[R], rounds: list[NumberedSteps], lag: int):
        self.flow = flow
        self.rounds = rounds
        self.lag = lag
        self.versions = _Counter(flow.limit_s)  # verified by every rollout worker
        self.ready: queue.Queue[tuple[R, float] | Exception] = queue.Queue()
        self.exports: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.threads = [
            threading.Thread(target=self._guard, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self.sample, self.push)
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self.threads:
            thread.start()

    def next_round(self) -> tuple[R, float]:
        """Return (round, seconds that the rollouts waited for its version).

        Raises RunError when `limit_s` is exceeded, and any exception of a loop.
        """
        try:
            item = self.ready.get(timeout=self.flow.limit_s)
        except queue.Empty:
            raise RunError(
                f"{self.flow.title}: no samples within {self.flow.limit_s:g} s "
                "(2 cluster.call_timeout_s + cluster.start_timeout_s)"
            ) from None
        if isinstance(item, Exception):
            raise item
        return item

    def stop(self) -> None:
        """End both loops and interrupt their waits."""
        self.versions.stop(RunError(f"{self.flow.title}: ended"))
        self.exports.put(None)
        for thread in self.threads:
            thread.join(min(self.flow.limit_s, JOIN_S))

    def sample(self) -> None:
        """Sample every round as soon as its version is verified."""
        for position, (number, steps) in enumerate(self.rounds):
            needed = position - self.lag
            what = f"version {number - self.lag} of the student for round {number}"
            waited_s = self.versions.wait(needed, what)
            self.ready.put((self.flow.sample(number, steps), waited_s))

    def push(self) -> None:
        """Deliver the exported states in order."""
        while (deliver := self.exports.get()) is not None:
            deliver()
            self.versions.add()

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        # The caller's loop raises it again.
        except Exception as error:  # noqa: BLE001
            self.versions.stop(error)
            self.ready.put(error)


class _Counter:
    """A counter of versions that threads can wait on."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._value = 0
        self._stopped: Exception | None = None
        self._changed = threading.Condition()

    def add(self) -> None:
        """Increment the counter."""
        with self._changed:
            self._value += 1
            self._changed.notify_all()

    def stop(self, reason: Exception) -> None:
        """Let all waits, present and future, raise `reason`; the first reason counts."""
        with self._changed:
            self._stopped = self._stopped or reason
            self._changed.notify_all()

    def wait(self, value: int, what: str) -> float:
        """Wait until the counter is at least `value`; return the seconds waited.

        Raises RunError when the limit is exceeded, and the reason of `stop`.
        """
        began = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._value >= value or self._stopped, self._limit_s
            ):
                raise RunError(
                    f"no {what} within {self._limit_s:g} s "
                    "(2 cluster.call_timeout_s + cluster.start_timeout_s)"
                )
            if self._stopped and self._value < value:
                raise self._stopped
        return time.monotonic() - began
