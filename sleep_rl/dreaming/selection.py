"""Step 2 of dreaming: draw tasks, and select dreams by their gradients.

Shapes: `_N` dreams of one task. A Gram matrix [N + 1, N + 1] has the inner products of the
gradients of N dreams and, last, of C.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sleep_rl.config.dreams import DreamConfig
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import DreamTask
from sleep_rl.dreaming.dream import Dream, from_plain, to_plain
from sleep_rl.dreaming.lessons import lesson_of
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

MIN_WEIGHT = 0.05  # of a task whose day has no errors, so that it is still drawn sometimes


def draw_tasks(
    tasks: Sequence[DreamTask],
    accuracy: Mapping[str, float],
    options: DreamConfig,
    newest: str,
    rng: random.Random,
) -> list[DreamTask]:
    """Draw the tasks of a round by options.curriculum, without replacement.

    `accuracy`: day -> its newest accuracy; a missing day counts as 0. `newest`: the newest day.
    With curriculum "weakest" the weight of a task is max(1 - accuracy of its day, MIN_WEIGHT).
    """
    pool = [t for t in tasks if options.curriculum != "newest" or t.day == newest]
    weight = {t.day: 1.0 for t in pool}
    if options.curriculum == "weakest":
        weight = {day: max(1 - accuracy.get(day, 0.0), MIN_WEIGHT) for day in weight}
    # Efraimidis and Spirakis: the largest u^(1/w) are a weighted sample without replacement.
    keyed = sorted(pool, key=lambda t: math.log(1 - rng.random()) / weight[t.day], reverse=True)
    return keyed[: options.tasks]


def dream_importance(gram: Sequence[Sequence[float]], kind: str) -> list[float]:
    """Return omega of each dream: the norm of its gradient (`kind` "norm"), or the inner product of
    its gradient with that of the loss on C (any other kind).
    """
    count = len(gram) - 1
    if kind == "norm":
        return [math.sqrt(max(gram[i][i], 0.0)) for i in range(count)]
    return [gram[i][count] for i in range(count)]


def keep(
    gram: Sequence[Sequence[float]], options: DreamConfig, rng: random.Random
) -> tuple[list[float], list[int]]:
    """Return (omega of every dream, positions of the kept ones).

    Kept are the keep_top most important dreams and keep_random of the others at random; with
    importance "random" all are random. A dream whose gradient is not finite ranks last.
    """
    omega = dream_importance(gram, options.importance)
    rank = [w if math.isfinite(w) else -math.inf for w in omega]
    candidates = range(len(omega))
    if options.importance == "random":
        return omega, sorted(
            rng.sample(candidates, min(options.keep_top + options.keep_random, len(omega)))
        )
    if options.importance == "greedy":
        best = greedy(gram, options.keep_top)
    else:
        best = sorted(candidates, key=lambda i: (-rank[i], i))[: options.keep_top]
    rest = [i for i in candidates if i not in best]
    return omega, sorted(best + rng.sample(rest, min(options.keep_random, len(rest))))


def greedy(gram: Sequence[Sequence[float]], k: int) -> list[int]:
    """Select `k` dreams one by one, as GREATS does: each time the dream i with the largest
    <g_i, g_C> - eta sum over selected j of <g_i, g_j>, eta = 1 / max |g_i|^2.

    Dreams whose gradient is not finite are never selected.
    """
    count = len(gram) - 1
    finite = [
        i for i in range(count) if math.isfinite(gram[i][i]) and math.isfinite(gram[i][count])
    ]
    eta = 1 / max(max((gram[i][i] for i in finite), default=0.0), 1e-30)
    chosen: list[int] = []
    while len(chosen) < min(k, len(finite)):
        left = [i for i in finite if i not in chosen]
        chosen.append(
            max(left, key=lambda i: (gram[i][count] - eta * sum(gram[i][j] for j in chosen), -i))
        )
    return chosen


@stage("dream/{night}/{number}/select", switch="dream.rounds", optional=True)
def select(
    run: RunContext, night: int, number: int, tasks: list[DreamTask], generated: list[dict]
) -> list[dict]:
    """Compute omega of every dream that has a lesson, and mark the kept ones of each task.

    `generated`: dreams as plain data, as is the result.
    """
    rng = random.Random(f"select {run.config.run.seed} {night} {number}")
    selected: list[Dream] = []
    with run.console.phase(f"night {night}: selecting dreams", total=len(tasks)) as tick:
        for task in tasks:
            dreams = [_checked(run, task, d) for d in from_plain(generated) if d.task == task.id]
            selected += _select(run, task, dreams, rng)
            tick(1, f"{sum(d.kept for d in selected)} kept")
    return to_plain(selected)


def _select(
    run: RunContext, task: DreamTask, dreams: list[Dream], rng: random.Random
) -> list[Dream]:
    """Return the dreams of one task with `importance` and `kept`."""
    options = run.config.dream
    codec = run.codec
    candidates = [dream for dream in dreams if not dream.reason]
    if not candidates:
        return dreams
    start = codec.context(None) + codec.ids(run.task.dream_opener)
    document = codec.document(task.context)
    texts_N = [(start, dream.ids) for dream in candidates] + [(document[:1], document[1:])]
    gram = run.crew.learn.gradient_gram(texts_N, options.importance == "greedy")
    omega, kept = keep(gram, options, rng)
    chosen = {
        dream.number: replace(dream, importance=omega[i], kept=i in kept)
        for i, dream in enumerate(candidates)
    }
    return [chosen.get(dream.number, dream) for dream in dreams]


def _checked(run: RunContext, task: DreamTask, dream: Dream) -> Dream:
    """Return the dream, with a reason if it has no lesson."""
    if dream.reason:
        return dream
    lesson = lesson_of(run, task, dream.text)
    return replace(dream, reason=lesson.reason) if isinstance(lesson, Failure) else dream
