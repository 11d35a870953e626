"""Which tasks are dreamed about, which dreams are kept, and which are rewarded (paper.md section
4): pure functions.

Shapes: `_N` dreams of one task. A Gram matrix holds the inner products of the gradients of N dreams
and, last, of C.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sleep_rl.config.method import Dream as DreamConfig
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import DreamTask, Ids

ROUNDING = 1e-9  # of a mean of grades, far below what one answer more or less changes


@dataclass(frozen=True)
class Dream:
    """A dream and all that became of it. None: it did not come to that. `reason`: why it was given
    up.
    """

    task: str
    number: int  # of its task, from 0
    seed: int  # of its sampling
    wander: int | None  # seed of the random experts; None: there were none
    experts: Mapping[str, int]  # level name -> slot that its router activated besides
    ids: Ids  # what was written, with eos
    text: str
    logprob: float  # mean over its tokens, nats
    reason: str = ""
    importance: float | None = None
    kept: bool = False
    tau_before: float | None = None  # of the un-updated model
    taus: tuple[float, ...] = ()  # of the copies, one per training seed
    reward: int | None = None  # equation 7
    held_out: float | None = None  # gain on the seed that the reward never saw

    @property
    def gain(self) -> float | None:
        """Mean tau of the copies over the un-updated model's."""
        return math.fsum(self.taus) / len(self.taus) - self.tau_before if self.taus else None


def draw_tasks(
    tasks: Sequence[DreamTask],
    accuracy: Mapping[str, float],
    how: DreamConfig,
    newest: str,
    rng: random.Random,
) -> list[DreamTask]:
    """The round's tasks, each at most once. `accuracy`: share of right answers per day, as last
    measured; a day that is not there yet lacks everything. At least a twentieth counts as lacking,
    so that no day is never dreamed about.
    """
    pool = [t for t in tasks if how.curriculum != "newest" or t.day == newest]
    lack = {
        t.day: max(1 - accuracy.get(t.day, 0.0), 0.05) if how.curriculum == "weakest" else 1.0
        for t in pool
    }
    # Efraimidis and Spirakis: the largest u^(1/w) are a weighted sample without replacement.
    keyed = sorted(pool, key=lambda t: math.log(1 - rng.random()) / lack[t.day], reverse=True)
    return keyed[: how.tasks]


def importance(gram: Sequence[Sequence[float]], how: str) -> list[float]:
    """omega of each dream: `norm` of its gradient, or its inner product with the gradient of C's
    loss (all others).
    """
    count = len(gram) - 1
    if how == "norm":
        return [math.sqrt(max(gram[i][i], 0.0)) for i in range(count)]
    return [gram[i][count] for i in range(count)]


def keep(
    gram: Sequence[Sequence[float]], how: DreamConfig, rng: random.Random
) -> tuple[list[float], list[int]]:
    """(omega of every dream, places of the kept ones): the k most important and b of the others at
    random; with `random` all of them at random. A gradient that is not finite makes its dream the
    least important.
    """
    omega = importance(gram, how.importance)
    rank = [w if math.isfinite(w) else -math.inf for w in omega]
    everyone = range(len(omega))
    if how.importance == "random":
        return omega, sorted(rng.sample(everyone, min(how.keep_top + how.keep_random, len(omega))))
    if how.importance == "greedy":
        best = greedy(gram, how.keep_top)
    else:
        best = sorted(everyone, key=lambda i: (-rank[i], i))[: how.keep_top]
    rest = [i for i in everyone if i not in best]
    return omega, sorted(best + rng.sample(rest, min(how.keep_random, len(rest))))


def greedy(gram: Sequence[Sequence[float]], k: int) -> list[int]:
    """GREATS: one dream after another, each by what a gradient step on it still takes off C's loss
    when the chosen ones were learned: <g_i, g_C> - eta sum over chosen j <g_i, g_j>, eta one over
    the largest squared norm.
    """
    count = len(gram) - 1
    sound = [i for i in range(count) if math.isfinite(gram[i][i]) and math.isfinite(gram[i][count])]
    eta = 1 / max(max((gram[i][i] for i in sound), default=0.0), 1e-30)
    chosen: list[int] = []
    while len(chosen) < min(k, len(sound)):
        left = [i for i in sound if i not in chosen]
        chosen.append(
            max(left, key=lambda i: (gram[i][count] - eta * sum(gram[i][j] for j in chosen), -i))
        )
    return chosen


def judged(
    before: float | Failure,
    taus: Sequence[float | Failure],
    held_out: float | Failure,
    margin: float,
) -> tuple[float, tuple[float, ...], int, float | None] | Failure:
    """Equation 7: (tau before, taus, reward, held-out gain); the reward is 1 where the mean over
    the training seeds beats the un-updated model by more than `margin` (and rounding). One tau that
    failed fails the dream: it has no reward, not a zero.
    """
    failed = next((tau for tau in (before, *taus) if isinstance(tau, Failure)), None)
    if failed:
        return failed
    reward = int(math.fsum(taus) / len(taus) - before > margin + ROUNDING)
    return before, tuple(taus), reward, None if isinstance(held_out, Failure) else held_out - before


def accepted(dreams: Sequence[Dream], how: str) -> list[Dream]:
    """The rewarded dreams: all of them, or the best of each task by its mean tau."""
    good = [d for d in dreams if d.reward]
    if how == "all_positive":
        return good
    best: dict[str, Dream] = {}
    for dream in good:
        if dream.task not in best or dream.gain > best[dream.task].gain:
            best[dream.task] = dream
    return list(best.values())
