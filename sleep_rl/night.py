"""One night (paper.md section 3): the teacher writes D, the student continues prefixes of it, batches mix both.

`Night` talks to the workers; everything below it is a pure function of its inputs and a seed.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from sleep_rl.config import Config
from sleep_rl.contracts import (STUDENT, TEACHER, TEXT, Day, Document, Failure, Metrics, Pair, Request, RunError, Sample,
                                Sequence, other)
from sleep_rl.flow import rounds
from sleep_rl.life import Life
from sleep_rl.rehearsal import Draw, Weighted
from sleep_rl.rewards import group_advantage
from sleep_rl.text import Ids, Texts

DREAMS = -1
"""In place of a sender: what is learned are dreams."""


def seed(life: Life, data: Night) -> None:
    """(b) consolidate: minimises L_KS over the new expert (paper.md section 3), round by round of y ~ S(.|x) and r(y)."""
    learn = life.crew.learn
    with closing(rounds(life, data)) as ahead:
        for sampled in ahead:
            for step, batch in zip(sampled.steps, sampled.batches, strict=True):
                metrics = learn.seed_step(batch.rows, step, data.config.sleep.steps)
                data.learned(sampled, step, metrics, learn.row_divergence())


class Night:
    """The material of one consolidation, in the order in which the driver asks for it.

    `sender` 0 is the context window: the teacher writes about the documents of `day`. A memory level sends without a
    day: everything is replayed or rehearsed. In night 0 the models of model.teachers write, from nothing. With sender
    DREAMS what is new was `told`: the texts of accepted dreams, beside dream.replay of self-replay.
    """

    def __init__(self, life: Life, night: int, sender: int, day: Day | None, told: list[Written] | None = None):
        self.life, self.night, self.sender = life, night, sender
        self.others = range(1, len(life.config.model.teachers) + 1) if night == 0 else ()
        self.told = told or []
        source = day.name if day else "other models" if self.others else "dreams" if told else f"level {sender}"
        self.where = {"night": night, "sender": sender, "day": source}
        self.documents = day.documents if day else ()
        changed = {} if day else {"reading": 0} if self.others else {"replay": 1.0}
        if told:  # nothing is to be sampled from the student, so it need not be pushed before the end
            how = life.config.dream
            changed = {"replay": how.replay, "reading": 0, "on_policy": 0.0, "steps": how.steps, "steps_per_round": how.steps}
        self.config = config = replace(life.config, sleep=replace(life.config.sleep, **changed))
        self.shares = Shares.of(config)
        self.rng = random.Random(f"night {config.run.seed} {night} {sender}")
        self.trained = self.tokens = self.idle_s = 0.0
        self.last: Metrics = {}
        self.tick: Callable[..., None] = lambda n, note="": None  # of the phase that shows what is written, or the steps

    def write(self) -> None:
        """D ~ T: about each document with it in context, answers to rehearsed prompts, and self-replay from nothing."""
        life, config, seed = self.life, self.config, f"{self.night} {self.sender}"
        behind, free = writing_requests(life.texts, self.documents, config, seed)
        prompts = life.index.draw(config.sleep.rehearse_written, self.rng) if config.sleep.rehearse else []
        again = rehearsal_requests(life.texts, prompts, config, seed)
        total = len(behind) + len(free) * (1 + len(self.others)) + len(again)
        with life.console.phase(f"{self.title}: the teacher writes", total=total) as self.tick:
            samples = self._sample(behind, TEACHER, min_p=config.sleep.min_p) + self._sample(free, TEACHER)
            data, left = readable(life.texts, samples, config.sleep.confidence)
            new, replay = ([w for w in data if w.replay == kind] for kind in (False, True))
            answers, unanswered = readable(life.texts, rehearsed(prompts, self._sample(again, TEACHER)))
            for k in self.others:
                told, lost = readable(life.texts, self._sample(free, other(k)))
                new += [replace(w, replay=False, teacher=k) for w in told]
                unanswered = {reason: count + lost[reason] for reason, count in unanswered.items()}
        new += self.told
        left = {k: v + unanswered[k] for k, v in left.items()}
        if (config.sleep.replay < 1 and not new) or (config.sleep.replay > 0 and not replay):
            raise RunError(f"{self.title}: the teacher wrote {len(new)} readable sequences about what is new and "
                           f"{len(replay)} from nothing; left out: {left}")
        life.journal.log("written", **self.where, new=len(new), replay=len(replay), rehearsed=len(answers),
                         prompts=len(life.index.prompts), **{k.replace(" ", "_"): v for k, v in left.items()},
                         examples=[life.texts.text(w.sequence_T) for w in new[:3] + replay[:3] + answers[:3]])
        self.new, self.free = Draw(new, self.rng), Draw(replay, self.rng)
        self.again = Weighted(answers, self.rng, life.index)

    @property
    def title(self) -> str:
        return f"night {self.night}" + {0: "", DREAMS: ", dreams"}.get(self.sender, f", level {self.sender} to {self.sender + 1}")

    def _replay(self, count: int) -> list[Written]:
        """Self-replay: a share of it rehearsed, as far as there is anything to rehearse."""
        again = self.again.take(round(self.config.sleep.rehearse * count))
        return again + self.free.take(count - len(again))

    def schedule(self) -> list[range]:
        """The night's steps in rounds; the student is pushed after each."""
        steps, size = self.config.sleep.steps, self.config.sleep.steps_per_round
        return [range(start, min(start + size, steps)) for start in range(0, steps, size)]

    def sampled(self, number: int, steps: range) -> Round:
        """y ~ S(.|x) for the coming `steps`, their rewards (equations 4 and 5), and the batches with all of it."""
        config, texts, shares, count = self.config, self.life.texts, self.shares, len(steps)
        taken = self.new.take(shares.groups_new * count) + self._replay(shares.groups_replay * count)
        prefixes = [cut(w, config, self.rng) for w in taken]
        samples = self._sample(continuation_requests(texts, prefixes, config, self.rng), STUDENT, round=number)
        rewards, metrics, began = None, {}, time.monotonic()
        if config.sleep.alpha < 1 and samples:
            rewards, metrics = self.life.crew.score(pairs_of(prefixes, samples, config.sleep.group))
            self.life.count_failures("reward", rewards)
        scored_s = time.monotonic() - began
        groups = student_rows(texts, prefixes, samples, rewards, config)
        new, replay = groups[: shares.groups_new * count], groups[shares.groups_new * count :]
        batches = tuple(self._batch(new, replay) for _ in steps)
        versions = [v for s in samples if not isinstance(s, Failure) for v in s.versions_T]
        return Round(number, steps, batches, metrics, min(versions, default=0), max(versions, default=0), scored_s)

    def _batch(self, new: list[list[Sequence]], replay: list[list[Sequence]]) -> Batch:
        """The rows of a step: groups of student samples and the teacher's own sequences, new and replayed."""
        shares, texts = self.shares, self.life.texts
        rows = [row for groups, count in ((new, shares.groups_new), (replay, shares.groups_replay))
                for _ in range(count) if groups for row in groups.pop()]
        written = self.new.take(shares.teacher_new) + self._replay(shares.teacher_replay)
        reading = reading_rows(texts, self.new.take(self.config.sleep.reading))
        if not rows and not written:
            raise RunError(f"{self.title}: nothing to train on: every sample of the round failed (the journal's `failure` "
                           "records say why); nothing of this night was applied")
        return Batch(rows + teacher_rows(texts, written) + reading, tuple(written), len(rows))

    def learned(self, sampled: Round, step: int, metrics: Metrics, divergence_N: list[float]) -> None:
        """One journal record per optimizer step. What the student has not yet taken over comes again sooner: divergence
        of the batch's rows, in order."""
        life, batch = self.life, sampled.batches[step - sampled.steps.start]
        for written, divergence in zip(batch.written, divergence_N[batch.first :], strict=False):
            if written.prompt_T:
                life.index.learned(written.prompt_T, divergence)
        gap, most = metrics.get("logprob_gap", 0.0), self.config.sleep.max_gap
        if step == sampled.steps.start and gap > most:
            raise RunError(f"{self.title}, step {step}: sampler and learner differ by {gap:.2g} nats a token, allowed "
                           f"are sleep.max_gap = {most:g}; nothing of this night was applied")
        life.journal.log("seed", **self.where, step=step, steps=self.config.sleep.steps, **metrics, **sampled.rewards)
        self.trained += metrics["tokens_trained"]
        self.last = {**metrics, **sampled.rewards}
        self.tick(1, f"loss {metrics['loss']:.3f}")

    def flowed(self, sampled: Round, trained_s: float, learner_waited_s: float, rollouts_waited_s: float) -> None:
        """One journal record per round: how old its samples were, and who waited for what."""
        self.idle_s += learner_waited_s
        self.life.journal.log("flow", **self.where, round=sampled.number, oldest=sampled.oldest, newest=sampled.newest,
                              trained_s=trained_s, learner_waited_s=learner_waited_s,
                              rollouts_waited_s=rollouts_waited_s, rewards_s=sampled.scored_s)

    def close(self, seconds: float) -> None:
        """The journal's summary of the night; its own prompts are rehearsed from the next one on."""
        prompts = [w.sequence_T[:length] for w in self.new.data if (length := _asked(self.life.texts, w))]
        self.life.index.add(self.night, prompts, self.config.sleep.rehearse_prompts)
        self.life.journal.log("night", **self.where, steps=self.config.sleep.steps,
                              seconds=seconds, tokens_sampled=self.tokens, tokens_trained=self.trained,
                              loss=self.last.get("loss"), divergence=self.last.get("divergence"),
                              reward_mean=self.last.get("reward_mean"), learner_idle=self.idle_s / max(seconds, 1e-9))

    def _sample(self, requests_N: list[Request], name: str, round: int = 0, min_p: float = 0.0) -> list[Sample | Failure]:
        """The student's samples are those of its own distribution: equations 3 and 6 are expectations under it."""
        life, temperature = self.life, 1.0 if name == STUDENT else self.config.sleep.temperature
        samples = life.sample(requests_N, name, life.task.max_new_tokens, temperature, min_p, **self.where, round=round)
        self.tokens += sum(len(s.completion_T) for s in samples if not isinstance(s, Failure))
        self.tick(0 if name == STUDENT else len(samples))  # what is sampled from the student shows in the steps
        return samples


@dataclass(frozen=True)
class Written:
    """One sequence d of D: written by the teacher behind `context` + opener, ended by itself, with marker and answer."""

    context_T: Ids  # what the teacher had in front: bos, and the document unless it is replay
    sequence_T: Ids  # d, with eos
    replay: bool
    prompt_T: Ids = ()  # the rehearsed prompt that it begins with
    teacher: int = 0  # who wrote it: see contracts.Sequence


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, and which of them the teacher wrote: `written`, from row `first` on."""

    rows: list[Sequence]
    written: tuple[Written, ...]
    first: int


@dataclass(frozen=True)
class Round:
    """The steps between two pushes of the student, and what they train on."""

    number: int
    steps: range
    batches: tuple[Batch, ...]
    rewards: Metrics
    oldest: int  # versions of the student that its samples come from; 0: there are none
    newest: int
    scored_s: float


@dataclass(frozen=True)
class Prefix:
    """A random beginning x of a written sequence, for the student to continue (Learning to Imitate)."""

    written: Written
    length: int

    @property
    def begun_T(self) -> Ids:
        return self.written.sequence_T[: self.length]

    @property
    def rest_T(self) -> Ids:
        return self.written.sequence_T[self.length :]

    def x_length(self, texts: Texts, completion_T: Ids) -> int:
        """Tokens of a continuation that still belong to the prompt x."""
        end = texts.x_length(self.begun_T + completion_T)
        return len(completion_T) if end is None else max(end - self.length, 0)


def writing_requests(texts: Texts, documents: tuple[Document, ...], config: Config,
                     seed: str) -> tuple[list[Request], list[Request]]:
    """Prompts that the teacher continues: `written` per document with it in context, `replay_written` without any."""
    s = config.sleep
    behind = [texts.context(d) for d in documents for _ in range(s.written)] if s.replay < 1 else []
    free = [texts.context(None)] * (s.replay_written if s.replay > 0 else 0)
    seeds = random.Random(f"write {config.run.seed} {seed}")
    behind, free = ([Request(texts.opener, c, seeds.getrandbits(31)) for c in contexts] for contexts in (behind, free))
    return behind, free


def rehearsal_requests(texts: Texts, prompts: list[Ids], config: Config, seed: str) -> list[Request]:
    """The teacher is asked what it asked itself before; it answers without any document."""
    seeds = random.Random(f"rehearse {config.run.seed} {seed}")
    return [Request(texts.opener + x, texts.context(None), seeds.getrandbits(31)) for x in prompts]


def rehearsed(prompts: list[Ids], samples_N: list[Sample | Failure]) -> list[Sample | Failure]:
    """The answers, each with its prompt in front, as if the whole had been written."""
    return [s if isinstance(s, Failure) else replace(s, completion_T=x + s.completion_T)
            for x, s in zip(prompts, samples_N, strict=True)]


def readable(texts: Texts, samples_N: list[Sample | Failure],
             confidence: float = 0.0) -> tuple[list[Written], dict[str, int]]:
    """(D, counts of what was left out and why): a sequence must end by itself and hold a question and an answer; about a
    document the teacher must have given that answer at least the probability `confidence`."""
    data, left = [], {"failed": 0, "unfinished": 0, "no answer": 0, "unsure": 0}
    plain = texts.context(None)
    for sample in samples_N:
        if isinstance(sample, Failure):
            left["failed"] += 1
        elif sample.finish_reason != "stop":
            left["unfinished"] += 1
        elif (parts := texts.split(sample.completion_T)) is None:
            left["no answer"] += 1
        elif sample.context_T != plain and math.exp(math.fsum(sample.logprobs_T[len(parts[0]) :])) < confidence:
            left["unsure"] += 1
        else:
            begun = sample.prompt_T[len(texts.opener) :]  # what it was asked, if it was
            data.append(Written(sample.context_T, sample.completion_T, sample.context_T == plain, begun))
    return data, left


@dataclass(frozen=True)
class Shares:
    """Rows of one optimizer step; derived from batch, replay, on_policy and group, printed by `plan`."""

    groups_new: int
    groups_replay: int
    teacher_new: int
    teacher_replay: int

    @staticmethod
    def of(config: Config) -> Shares:
        s = config.sleep
        groups = round(s.on_policy * s.batch / s.group)
        groups_replay = round(s.replay * groups)
        teacher = s.batch - groups * s.group
        replay = min(max(round(s.replay * s.batch) - groups_replay * s.group, 0), teacher)
        return Shares(groups - groups_replay, groups_replay, teacher - replay, replay)


def cut(written: Written, config: Config, rng: random.Random) -> Prefix:
    """Prefix law: uniform between prefix_min and prefix_max of the sequence, at least one token on either side."""
    length = len(written.sequence_T)
    share = rng.uniform(config.sleep.prefix_min, config.sleep.prefix_max)
    return Prefix(written, min(max(int(share * length), 1), length - 1))


def continuation_requests(texts: Texts, prefixes: list[Prefix], config: Config, rng: random.Random) -> list[Request]:
    """`group` student continuations of each prefix, without the document."""
    return [Request(texts.opener + p.begun_T, texts.context(None), rng.getrandbits(31))
            for p in prefixes for _ in range(config.sleep.group)]


def pairs_of(prefixes: list[Prefix], samples_N: list[Sample | Failure], group: int) -> list[Pair | Failure]:
    """The student's continuation beside the teacher's of the same prefix (prefix excluded), for the rewards."""
    return [s if isinstance(s, Failure) else Pair(s.completion_T, prefixes[i // group].rest_T, prefixes[i // group].begun_T)
            for i, s in enumerate(samples_N)]


def student_rows(texts: Texts, prefixes: list[Prefix], samples_N: list[Sample | Failure],
                 rewards_N: list[float | Failure] | None, config: Config) -> list[list[Sequence]]:
    """One group of rows per prefix: both terms of equation 6 on the same student samples. A failed sample has no row;
    one whose reward failed has no advantage. `rewards_N` None: imitation is off."""
    size = config.sleep.group
    groups = []
    for i, prefix in enumerate(prefixes):
        mine = slice(i * size, (i + 1) * size)
        advantages = (group_advantage(rewards_N[mine], config.sleep.scale_advantage) if rewards_N is not None
                      else [None] * size)
        rows = [Sequence(prompt_T=sample.context_T + sample.prompt_T, completion_T=sample.completion_T,
                         teacher_T=prefix.written.context_T + sample.prompt_T, advantage=advantage,
                         behaviour_T=sample.logprobs_T, replay=prefix.written.replay, teacher=prefix.written.teacher,
                         x_length=prefix.x_length(texts, sample.completion_T))
                for sample, advantage in zip(samples_N[mine], advantages, strict=True) if not isinstance(sample, Failure)]
        groups.append(rows)
    return groups


def reading_rows(texts: Texts, written: list[Written]) -> list[Sequence]:
    """Self-replay of reading: teacher and student both have the document in front. Without it the new expert wears
    down what the model does with its context, and later teachers write worse."""
    return [Sequence(prompt_T=w.context_T + texts.opener, completion_T=w.sequence_T, replay=True,
                     x_length=texts.x_length(w.sequence_T) or 0) for w in written]


def teacher_rows(texts: Texts, written: list[Written]) -> list[Sequence]:
    """Rows on the teacher's own sequences, questions included: what is written can be written again (self-replay). What
    was told stands behind its own beginning."""
    start = texts.context(None) + texts.opener
    return [Sequence(prompt_T=w.context_T if w.teacher == TEXT else start, completion_T=w.sequence_T,
                     teacher_T=w.context_T + texts.opener * (w.teacher != TEXT), replay=w.replay,
                     teacher=w.teacher, x_length=_asked(texts, w)) for w in written]


def _asked(texts: Texts, w: Written) -> int:
    """Tokens of a sequence that ask: up to the marker, where it stands behind the opener."""
    behind = w.teacher != TEXT or w.context_T[-len(texts.opener) :] == texts.opener
    return (texts.x_length(w.sequence_T) or 0) if behind else 0
