"""How samples and weights flow in one consolidation (paper.md section 3 b): in turns, or with the
rollouts ahead.

The rollouts of round n may use version n of the student (the one behind n rounds of steps) or one
of the `sleep.lag` versions before it. With lag 0 rollouts, learner and push take turns; otherwise
three loops run at once:

rollouts   consume versions, wait for version n - lag, are unblocked by a push, produce sampled
rounds
learner    consumes rounds in order, each once, waits for the next, is unblocked by the rollouts,
produces steps
pushes     consume exported states in order, wait for the rollout workers to verify them, produce
versions

The queue between rollouts and learner never holds more than lag + 1 rounds, because a round is
sampled only when its version is there; nothing that was sampled is thrown away. An error in any
loop ends all three.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import STUDENT

if TYPE_CHECKING:
    from sleep_rl.night.consolidation import Night, Round
    from sleep_rl.session.context import RunContext

PATIENCE_S = 60.0  # at the end, with a loop that is inside a call


def rounds(run: RunContext, data: Night) -> Iterator[Round]:
    """The night's rounds of steps with their samples, in order. The student is pushed after each;
    its samples in the next are at most `sleep.lag` versions old. To be closed (contextlib.closing),
    however the night ends.
    """
    total, size = data.config.sleep.steps, data.config.sleep.steps_per_round
    with run.console.phase(f"{data.title}: seeding", total=total) as data.tick:
        data.tick(data.done)
        for part in data.schedule():  # between parts the queue is empty and every state is pushed
            numbered = [(steps.start // size, steps) for steps in part]
            yield from (
                _ahead(run, data, numbered)
                if run.config.sleep.lag
                else _in_turn(run, data, numbered)
            )
            if part[-1].stop < total:
                data.safe(part[-1].stop)


def _in_turn(run: RunContext, data: Night, part: list[tuple[int, range]]) -> Iterator[Round]:
    pushed_s = 0.0
    for number, steps in part:
        began = time.monotonic()
        sampled = data.sampled(number, steps)
        sampled_s = time.monotonic() - began
        yield sampled
        trained_s = time.monotonic() - began - sampled_s
        data.flowed(
            sampled,
            trained_s,
            learner_waited_s=sampled_s + pushed_s,
            rollouts_waited_s=trained_s + pushed_s,
        )
        began = time.monotonic()
        run.crew.push(STUDENT, STUDENT)
        pushed_s = time.monotonic() - began


def _ahead(run: RunContext, data: Night, part: list[tuple[int, range]]) -> Iterator[Round]:
    lag, cluster = run.config.sleep.lag, run.config.cluster
    # a call, a restart, and the call again
    limit_s = 2 * cluster.call_timeout_s + cluster.start_timeout_s
    there = _Counter(limit_s)  # versions that every rollout worker has verified
    ready: queue.Queue[tuple[Round, float] | Exception] = queue.Queue()
    offers: queue.Queue[Callable[[], None] | None] = queue.Queue()

    def sample() -> None:
        for place, (number, steps) in enumerate(part):
            waited_s = there.wait(
                place - lag, f"version {number - lag} of the student for round {number}"
            )
            ready.put((data.sampled(number, steps), waited_s))

    def push() -> None:
        while (deliver := offers.get()) is not None:
            deliver()
            there.add()

    def guarded(loop: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                loop()
            except Exception as error:  # raised again by the learner's loop, which is the driver's
                there.stop(error)
                ready.put(error)

        thread = threading.Thread(target=run, name=loop.__name__, daemon=True)
        thread.start()
        return thread

    threads = [guarded(sample), guarded(push)]
    try:
        for _ in part:
            began = time.monotonic()
            try:
                item = ready.get(timeout=limit_s)
            except queue.Empty:
                raise RunError(
                    f"{data.title}: no samples within {limit_s:g} s (twice "
                    "cluster.call_timeout_s and a "
                    "start)"
                ) from None
            if isinstance(item, Exception):
                raise item
            (sampled, rollouts_s), learner_s, began = (
                item,
                time.monotonic() - began,
                time.monotonic(),
            )
            yield sampled
            data.flowed(
                sampled,
                time.monotonic() - began,
                learner_waited_s=learner_s,
                rollouts_waited_s=rollouts_s,
            )
            # exported now, delivered while the next round trains
            offers.put(run.crew.push_async(STUDENT, STUDENT))
        there.wait(len(part), "the last push")
    finally:
        there.stop(RunError(f"{data.title}: over"))
        offers.put(None)
        for thread in threads:
            thread.join(min(limit_s, PATIENCE_S))


class _Counter:
    """Counts versions; who waits for one is woken when it is there, or when all is over."""

    def __init__(self, limit_s: float):
        self._limit_s, self._value, self._over = limit_s, 0, None
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
        """Seconds until the count is `value`. Raises RunError past the limit, and the reason of
        `stop`.
        """
        began = time.monotonic()
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._value >= value or self._over, self._limit_s
            ):
                raise RunError(
                    f"no {what} within {self._limit_s:g} s (twice "
                    "cluster.call_timeout_s and a start)"
                )
            if self._over and self._value < value:
                raise self._over
        return time.monotonic() - began
