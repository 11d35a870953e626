"""Step 3 of dreaming: try out each kept dream on isolated copies, and reward it (equation 7)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from sleep_rl.contracts.errors import Failure, InputError
from sleep_rl.contracts.records import DreamTask, Sampling, Trial
from sleep_rl.dreaming.dream import Dream, from_plain, to_plain
from sleep_rl.dreaming.lessons import lesson_of
from sleep_rl.dreaming.record import record_round
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import stage

ROUNDING = 1e-9  # of a mean of grades, far below the change by one answer


@stage("dream/{night}/{number}/try_out", switch="dream.rounds", optional=True)
def try_out(
    run: RunContext, night: int, number: int, tasks: list[DreamTask], selected: list[dict]
) -> list[dict]:
    """Train isolated copies on each kept dream, and compute taus, reward and held-out gain.

    One more copy per dream, with a training seed of its own, gives the held-out gain and is not
    part of the reward. All dreams are journaled and written to
    <run>/dreams/night-<n>-<round>.jsonl. `selected`: dreams as plain data, as is the result.
    """
    dreams = from_plain(selected)
    by_id = {task.id: task for task in tasks}
    kept = [dream for dream in dreams if dream.kept]
    per_dream = run.config.dream.copies.seeds + 1
    trials = [Trial((), _questions(run, task)) for task in tasks]
    owners = list(tasks)
    for dream in kept:
        task = by_id[dream.task]
        trials += [_trial(run, task, dream, copy) for copy in range(per_dream)]
        owners += [task] * per_dream
    fields = {"night": night, "round": number, "copies": len(trials) - len(tasks)}
    with (
        run.console.phase(f"night {night}: trials of {len(kept)} dreams on {len(trials)} copies"),
        run.timed("tried", **fields, dreams=len(kept)),
    ):
        greedy = Sampling(run.task.max_answer_tokens, 0.0, run.codec.ends)
        answers = run.crew.try_out(trials, greedy)
    run.count_failures("critic", answers)
    taus = [_tau(run, task, answer) for task, answer in zip(owners, answers, strict=True)]
    before = dict(zip(by_id, taus[: len(tasks)], strict=True))
    verdicts = {}
    for i, dream in enumerate(kept):
        first = len(tasks) + i * per_dream
        *rewarded, held_out = taus[first : first + per_dream]
        verdicts[id(dream)] = judged(before[dream.task], rewarded, held_out)
    judged_dreams = [_with(dream, verdicts[id(dream)]) if dream.kept else dream for dream in dreams]
    record_round(run, night, number, by_id, judged_dreams)
    return to_plain(judged_dreams)


def judged(
    before: float | Failure,
    taus: Sequence[float | Failure],
    held_out: float | Failure,
) -> tuple[float, tuple[float, ...], int, float | None] | Failure:
    """Return (tau before, taus, reward, held-out gain) by equation 7: the reward is 1 if the mean
    over the training seeds exceeds the un-updated model, else 0.

    Returns a Failure if any tau failed, since the dream then has no reward.
    """
    failed = next((tau for tau in (before, *taus) if isinstance(tau, Failure)), None)
    if failed:
        return failed
    reward = int(math.fsum(taus) / len(taus) - before > ROUNDING)
    held_out_gain = None if isinstance(held_out, Failure) else held_out - before
    return before, tuple(taus), reward, held_out_gain


def _questions(run: RunContext, task: DreamTask) -> tuple[tuple[int, ...], ...]:
    return tuple(run.codec.context(None) + run.codec.question(q) for q in task.questions)


def _trial(run: RunContext, task: DreamTask, dream: Dream, copy: int) -> Trial:
    options = run.config.dream.copies
    lesson = lesson_of(run, task, dream.text)
    rows = tuple(run.codec.baseline(text) for text in lesson.texts)
    rng = random.Random(f"copy {run.config.run.seed} {dream.task} {dream.seed} {copy}")
    return Trial(
        rows,
        _questions(run, task),
        rng.getrandbits(31),
        lesson.lr or options.lr,
        lesson.epochs or options.epochs,
    )


def _tau(run: RunContext, task: DreamTask, answers: tuple | Failure) -> float | Failure:
    if isinstance(answers, Failure):
        return answers
    tau = run.task.tau(task, [run.codec.text(ids) for ids in answers])
    if not isinstance(tau, Failure) and not 0 <= tau <= 1:  # NaN is refused, too
        raise InputError(f"task {task.id}: tau lies in [0, 1], got {tau}")
    return tau


def _with(dream: Dream, verdict: tuple | Failure) -> Dream:
    if isinstance(verdict, Failure):
        return replace(dream, reason=verdict.reason)
    before, taus, reward, held_out = verdict
    return replace(dream, tau_before=before, taus=taus, reward=reward, held_out=held_out)
