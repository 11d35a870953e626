"""How samples and weights flow in one consolidation (paper.md section 3 b): in turns, or with the
rollouts ahead.

The rollouts of round n may use version n of the student (the one behind n rounds of steps) or one
of the `lag` versions before it. With lag 0 rollouts, learner and push take turns; otherwise three
loops run at once:

rollouts   consume versions, wait for version n - lag, are unblocked by a push, produce rounds
learner    consumes rounds in order, each once, waits for the next, is unblocked by the rollouts
pushes     consume exported states in order, wait for the workers to verify them, produce versions

The queue between rollouts and learner never holds more than lag + 1 rounds, because a round is
sampled only when its version is held; nothing that was sampled is thrown away. An error in any loop
ends all three.
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
"""A sampled round; this module does not look inside."""
NumberedSteps = tuple[int, range]
"""Number of a round, and its optimizer steps."""

JOIN_S = 60.0  # at the end, how long a loop that is inside a call is waited for


@dataclass(frozen=True)
class Flow(Generic[R]):
    """The calls that the three loops make."""

    title: str  # of the consolidation, for errors
    sample: Callable[[int, range], R]
    push: Callable[[], None]
    push_async: Callable[[], Callable[[], None]]  # exports now; the returned call delivers
    # Called after a round was trained with (round, seconds trained, seconds that the learner
    # waited, seconds that the rollouts waited).
    trained: Callable[[R, float, float, float], None]
    limit_s: float  # of a wait: a call, a restart, and the call again


def run_rounds(flow: Flow[R], rounds: list[NumberedSteps], lag: int) -> Iterator[R]:
    """Yield the sampled rounds in order; the caller trains on each before it asks for the next.

    The student is pushed after each; its samples in the next are at most `lag` versions old. Close
    the iterator (contextlib.closing) however the night ends. Raises RunError past the limit, and
    what a loop raised.
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
            # Exported now, delivered while the next round trains.
            loops.exports.put(flow.push_async())
        loops.versions.wait(len(rounds), "the last push")
    finally:
        loops.stop()


class _Loops(Generic[R]):
    """The rollouts' loop and the pushes' loop, each in a thread; the learner's is the caller's."""

    def __init__(self, flow: Flow[R], rounds: list[NumberedSteps], lag: int):
        self.flow = flow
        self.rounds = rounds
        self.lag = lag
        self.versions = _Counter(flow.limit_s)  # that every rollout worker has verified
        self.ready: queue.Queue[tuple[R, float] | Exception] = queue.Queue()
        self.exports: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.threads = [
            threading.Thread(target=self._guard, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self.sample, self.push)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def next_round(self) -> tuple[R, float]:
        """Return (round, seconds that the rollouts waited for its version). Raises what a loop
        raised.
        """
        try:
            item = self.ready.get(timeout=self.flow.limit_s)
        except queue.Empty:
            raise RunError(
                f"{self.flow.title}: no samples within {self.flow.limit_s:g} s (twice "
                "cluster.call_timeout_s and a start)"
            ) from None
        if isinstance(item, Exception):
            raise item
        return item

    def stop(self) -> None:
        """End both loops, whatever they wait for."""
        self.versions.stop(RunError(f"{self.flow.title}: over"))
        self.exports.put(None)
        for thread in self.threads:
            thread.join(min(self.flow.limit_s, JOIN_S))

    def sample(self) -> None:
        for position, (number, steps) in enumerate(self.rounds):
            needed = position - self.lag
            what = f"version {number - self.lag} of the student for round {number}"
            waited_s = self.versions.wait(needed, what)
            self.ready.put((self.flow.sample(number, steps), waited_s))

    def push(self) -> None:
        while (deliver := self.exports.get()) is not None:
            deliver()
            self.versions.add()

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        # Raised again in the learner's loop, which is the driver's.
        except Exception as error:  # noqa: BLE001
            self.versions.stop(error)
            self.ready.put(error)


class _Counter:
    """Counts versions; a wait ends when the version is held, or when all is over."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._value = 0
        self._over: Exception | None = None
        self._changed = threading.Condition()

    def add(self) -> None:
        with self._changed:
            self._value += 1
            self._changed.notify_all()

    def stop(self, reason: Exception) -> None:
        with self._changed:
            self._over = self._over or reason
            self._changed.notify_all()

    def wait(self, value: int, what: str) -> float:
        """Return the seconds until the count was `value`. Raises RunError past the limit, and the
        reason of `stop`.
        """
        began = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._value >= value or self._over, self._limit_s
            ):
                raise RunError(
                    f"no {what} within {self._limit_s:g} s (twice cluster.call_timeout_s and a "
                    "start)"
                )
            if self._over and self._value < value:
                raise self._over
        return time.monotonic() - began
