"""Dreaming, the second stage of sleep (paper.md section 4): the model writes about its tasks, tries
what it wrote on copies of itself, lets its dreaming policy follow what helped, and learns that
itself.

Every step is a stage: one that is cut off is done again with the same result, from plain data that
earlier ones gave.
"""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import (
    STUDENT,
    TEACHER,
    DreamTask,
    Lesson,
    Request,
    Sample,
    Sampling,
    TrainingRow,
    TrainingText,
    Trial,
)
from sleep_rl.dreaming.selection import Dream, accepted, draw_tasks, judged, keep
from sleep_rl.night.consolidation import Consolidation
from sleep_rl.night.plan import plan_dreams
from sleep_rl.night.sequences import Origin, TeacherSequence
from sleep_rl.session.context import RunContext
from sleep_rl.session.prompts import PromptCodec
from sleep_rl.session.resumable import stage

# tags of memories in the learner: the policy's, and the model's own meanwhile
DREAMER, SELF = "dreamer", "self"


def dream(run: RunContext, night: int, row: dict[str, float], policy: bool) -> bool:
    """ReST-EM behind a night: in each round dreams are written, selected, tried out, and the policy
    follows those that were rewarded; then the model learns them. `row`: accuracies as last
    measured. `policy`: whether the dreaming policy has a memory of its own; returned for the next
    night.
    """
    how, good = run.config.dream, []
    for number in range(1, how.rounds + 1):
        tasks = tasks_of(run, night, number, row)
        written = write(run, night, number, tasks, policy)
        selected = select(run, night, number, tasks, written)
        dreams = _dreams(try_out(run, night, number, tasks, selected))
        mine = accepted(dreams, how.accept)
        policy = follow(run, night, number, mine, policy)
        good += mine
    if good:
        learn(run, night, good)
    return policy


def tasks_of(run: RunContext, night: int, number: int, row: dict[str, float]) -> list[DreamTask]:
    """The round's tasks, drawn from those of all days so far (curriculum)."""
    days = run.task.days()[:night]
    everything = [task for day in days for task in run.task.dream_tasks(day)]
    rng = random.Random(f"tasks {run.config.run.seed} {night} {number}")
    return draw_tasks(everything, row, run.config.dream, days[-1].name, rng)


@stage("dream/{night}/{number}/write", switch="dream.rounds", optional=True)
def write(
    run: RunContext, night: int, number: int, tasks: list[DreamTask], policy: bool
) -> list[dict]:
    """m dreams ~ LM(.|C) per task; for the i-th of every task each router also activates the same
    random experts.
    """
    how, texts, learner = run.config.dream, run.codec, run.crew.learn
    rng = random.Random(f"dream {run.config.run.seed} {night} {number}")
    opener, dreams = texts.ids(run.task.dream_opener), []
    if policy:
        learner.save_state(SELF)
        if number == 1:  # what the model learned since, the policy has, too
            learner.rebase_policy_expert(DREAMER)
        else:
            learner.load_state(DREAMER)
    with run.console.phase(
        f"night {night}: dreams, round {number}", total=how.dreams_per_task
    ) as tick:
        for i in range(how.dreams_per_task):
            wander = rng.getrandbits(31) if how.novelty else None
            experts = {} if wander is None else learner.activate_random_expert(wander)
            if i == 0 or how.novelty:
                run.crew.push(DREAMER, STUDENT)
            if wander is not None:
                learner.discard_night()
            requests = [
                Request(opener, texts.context(t.context), rng.getrandbits(31)) for t in tasks
            ]
            samples = run.sample(
                requests,
                DREAMER,
                run.task.max_dream_tokens,
                how.temperature,
                night=night,
                round=number,
            )
            dreams += [
                _dream(texts, task, i, request, wander, experts, sample)
                for task, request, sample in zip(tasks, requests, samples, strict=True)
            ]
            tick(1, f"{len(dreams)} dreams")
    if policy:
        learner.load_state(SELF)
    return _plain(dreams)


def _dream(
    texts: PromptCodec,
    task: DreamTask,
    number: int,
    request: Request,
    wander: int | None,
    experts: dict[str, int],
    sample: Sample | Failure,
) -> Dream:
    if isinstance(sample, Failure):
        return Dream(task.id, number, request.seed, wander, experts, (), "", 0.0, sample.reason)
    reason = "" if sample.finish_reason == "stop" else "it has no end"
    return Dream(
        task.id,
        number,
        request.seed,
        wander,
        experts,
        sample.completion_T,
        texts.text(sample.completion_T),
        fmean(sample.logprobs_T),
        reason,
    )


@stage("dream/{night}/{number}/select", switch="dream.rounds", optional=True)
def select(
    run: RunContext, night: int, number: int, tasks: list[DreamTask], written: list[dict]
) -> list[dict]:
    """omega of every dream that teaches anything, from gradients; top-k and b random ones of each
    task are kept.
    """
    how, texts = run.config.dream, run.codec
    rng = random.Random(f"select {run.config.run.seed} {night} {number}")
    start, out = texts.context(None) + texts.ids(run.task.dream_opener), []
    with run.console.phase(f"night {night}: selecting dreams", total=len(tasks)) as tick:
        for task in tasks:
            mine = [_checked(run, task, d) for d in _dreams(written) if d.task == task.id]
            sound = [d for d in mine if not d.reason]
            kept: list[int] = []
            omega: list[float] = []
            if sound:
                document = texts.document(task.context)
                texts_N = [(start, d.ids) for d in sound] + [(document[:1], document[1:])]
                gram = run.crew.learn.gradient_gram(texts_N, how.importance == "greedy")
                omega, kept = keep(gram, how, rng)
            chosen = {
                d.number: (w, i in kept) for i, (d, w) in enumerate(zip(sound, omega, strict=True))
            }
            out += [
                replace(d, importance=chosen[d.number][0], kept=chosen[d.number][1])
                if d.number in chosen
                else d
                for d in mine
            ]
            tick(1, f"{sum(d.kept for d in out)} kept")
    return _plain(out)


def _checked(run: RunContext, task: DreamTask, dream: Dream) -> Dream:
    """The dream, given up where it teaches nothing."""
    if dream.reason:
        return dream
    lesson = _lesson(run, task, dream.text)
    return replace(dream, reason=lesson.reason) if isinstance(lesson, Failure) else dream


def _lesson(run: RunContext, task: DreamTask, text: str) -> Lesson | Failure:
    """What a dream teaches, without texts that do not fit."""
    lesson = run.task.lesson(task, text)
    if isinstance(lesson, Failure):
        return lesson
    limit = {**run.config.rollouts.engine, **run.config.critics.engine}.get(
        "max_model_len"
    ) or math.inf
    fit = tuple(t for t in lesson.texts if sum(map(len, run.codec.baseline(t))) <= limit)
    return (
        replace(lesson, texts=fit)
        if fit
        else Failure(f"none of its texts fits into max_model_len = {limit}", "dream")
    )


@stage("dream/{night}/{number}/try_out", switch="dream.rounds", optional=True)
def try_out(
    run: RunContext, night: int, number: int, tasks: list[DreamTask], selected: list[dict]
) -> list[dict]:
    """Each kept dream on isolated copies: tau with and without, the reward (equation 7), and the
    gain on one more training seed that the reward never sees. All dreams are journaled and written
    as <run>/dreams/night-<n>-<round>.jsonl.
    """
    how, dreams = run.config.dream, _dreams(selected)
    by_id = {task.id: task for task in tasks}
    kept = [d for d in dreams if d.kept]
    trials = [Trial((), _asked(run, task)) for task in tasks]
    trials += [
        _trial(run, by_id[d.task], d, copy) for d in kept for copy in range(how.copies.seeds + 1)
    ]
    with (
        run.console.phase(f"night {night}: {len(trials)} copies try out {len(kept)} dreams"),
        run.timed(
            "tried", night=night, round=number, copies=len(trials) - len(tasks), dreams=len(kept)
        ),
    ):
        answers = run.crew.try_out(trials, Sampling(run.task.max_answer_tokens, 0.0, run.codec.eos))
    run.count_failures("critic", answers)
    owners = [*tasks, *(by_id[d.task] for d in kept for _ in range(how.copies.seeds + 1))]
    taus = [_tau(run, task, answer) for task, answer in zip(owners, answers, strict=True)]
    before, rest = dict(zip(by_id, taus[: len(tasks)], strict=True)), iter(taus[len(tasks) :])
    out = []
    for d in dreams:
        if d.kept:
            mine = [next(rest) for _ in range(how.copies.seeds + 1)]
            d = _with(d, judged(before[d.task], mine[:-1], mine[-1], how.copies.margin))
        out.append(d)
    _record(run, night, number, by_id, out)
    return _plain(out)


def _asked(run: RunContext, task: DreamTask) -> tuple[tuple[int, ...], ...]:
    return tuple(run.codec.context(None) + run.codec.question(q) for q in task.questions)


def _trial(run: RunContext, task: DreamTask, dream: Dream, copy: int) -> Trial:
    how, lesson = run.config.dream, _lesson(run, task, dream.text)
    rows = tuple(run.codec.baseline(text) for text in lesson.texts)
    rng = random.Random(f"copy {run.config.run.seed} {dream.task} {dream.seed} {copy}")
    return Trial(
        rows,
        _asked(run, task),
        rng.getrandbits(31),
        lesson.lr or how.copies.lr,
        lesson.epochs or how.copies.epochs,
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


def _record(
    run: RunContext, night: int, number: int, tasks: dict[str, DreamTask], dreams: list[Dream]
) -> None:
    """The round as journal records, and as a dataset that `datasets` reads."""
    rows = [
        {
            "night": night,
            "round": number,
            **asdict(d),
            "gain": d.gain,
            "context": tasks[d.task].context.text,
        }
        for d in dreams
    ]
    for row in rows:
        run.journal.log("dream", **{k: v for k, v in row.items() if k not in ("ids", "context")})
    scored = [d for d in dreams if d.reward is not None]
    held = [d.held_out for d in scored if d.held_out is not None and d.reward]
    reasons = [d.reason for d in dreams if d.reason]
    for reason in sorted(set(reasons)):
        run.journal.log("failure", where="dream", reason=reason, count=reasons.count(reason))
    run.journal.log(
        "dreamed",
        night=night,
        round=number,
        written=len(dreams),
        kept=sum(d.kept for d in dreams),
        rewarded=sum(bool(d.reward) for d in scored),
        failed=len(reasons),
        tau_before=_mean([d.tau_before for d in scored]),
        gain=_mean([d.gain for d in scored]),
        gain_rewarded=_mean([d.gain for d in scored if d.reward]),
        gain_held_out=_mean(held),
    )
    folder = Path(run.folder) / "dreams"
    try:
        os.makedirs(folder, exist_ok=True)
        lines = [
            json.dumps(
                {
                    k: None if isinstance(v, float) and not math.isfinite(v) else v
                    for k, v in row.items()
                }
            )
            for row in rows
        ]
        (folder / f"night-{night}-{number}.jsonl").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _mean(values: list[float]) -> float | None:
    """Of nothing there is no mean, and no zero."""
    return fmean(values) if values else None


@stage("dream/{night}/{number}/follow", switch="dream.rounds", optional=True)
def follow(run: RunContext, night: int, number: int, good: list[Dream], policy: bool) -> bool:
    """The M-step: SFT of the dreaming policy on the rewarded dreams, with C in front, in an expert
    of its own. Returns whether the policy has a memory of its own now.
    """
    how, texts, learner = run.config.dream, run.codec, run.crew.learn
    if not good or how.policy.epochs == 0:
        return policy
    by_id = {t.id: t for day in run.task.days()[:night] for t in run.task.dream_tasks(day)}
    opener = texts.ids(run.task.dream_opener)
    rows = [TrainingRow(texts.context(by_id[d.task].context) + opener, d.ids) for d in good]
    rng = random.Random(f"follow {run.config.run.seed} {night} {number}")
    queue = [row for _ in range(how.policy.epochs) for row in rng.sample(rows, len(rows))]
    steps = math.ceil(len(queue) / how.policy.batch)
    learner.save_state(SELF)
    again = policy and how.policy.init == "previous"
    if again:
        learner.load_state(DREAMER)
    learner.open_night(1, slot="reuse_newest" if again else "next_or_newest")
    with run.console.phase(
        f"night {night}: the dreaming policy follows {len(good)} dreams", total=steps
    ) as tick:
        for step in range(steps):
            metrics = learner.sft_step(
                queue[step * how.policy.batch :][: how.policy.batch], step, steps, how.policy.lr
            )
            run.journal.log(
                "policy", night=night, round=number, step=step, steps=steps, loss=metrics["loss"]
            )
            tick(1, f"loss {metrics['loss']:.3f}")
    learner.commit_night()
    learner.save_state(DREAMER)
    learner.load_state(SELF)
    return True


@stage("dream/{night}/learn", switch="dream.rounds", optional=True)
def learn(run: RunContext, night: int, good: list[Dream]) -> None:
    """The model itself learns the accepted dreams: cross entropy on their texts in one more expert
    of level 1, held to its old self by the same self-replay as in consolidation.
    """
    tasks = {t.id: t for day in run.task.days()[:night] for t in run.task.dream_tasks(day)}
    lessons = [_lesson(run, tasks[d.task], d.text) for d in good]
    # each once
    texts = [text for lesson in lessons for text in lesson.texts]
    sequences = list(dict.fromkeys(lesson_sequence(run.codec, text) for text in texts))  # each once
    plan = plan_dreams(run.config, night)
    run.crew.learn.open_night(1)
    consolidation = Consolidation.begin(run, plan, None, sequences)
    consolidation.train()
    run.crew.learn.commit_night()
    run.crew.push(TEACHER, TEACHER)
    consolidation.finish()


def lesson_sequence(codec: PromptCodec, text: TrainingText) -> TeacherSequence:
    """Return a lesson's text as a sequence of D whose target is the text itself.

    Where it begins with the opener and holds a marker, its prompt is rehearsed in later nights like
    one that the teacher wrote.
    """
    prompt, completion = codec.baseline(text)
    start = codec.context(None) + codec.opener
    asked = prompt[len(start) :]
    if prompt[: len(start)] == start and codec.x_length(asked) == len(asked):
        return TeacherSequence(Origin.DREAM, start, asked + completion)
    return TeacherSequence(Origin.DREAM, prompt, completion)


def _plain(dreams: list[Dream]) -> list[dict]:
    return [asdict(d) for d in dreams]


def _dreams(rows: list[dict]) -> list[Dream]:
    return [Dream(**{**row, "ids": tuple(row["ids"]), "taus": tuple(row["taus"])}) for row in rows]
