"""One night (paper.md section 3): the teacher writes D, the student continues prefixes of it, batches mix both.

`Night` talks to the workers; everything below it is a pure function of its inputs and a seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Iterator

from sleep_rl.config import Config
from sleep_rl.contracts import (STUDENT, TEACHER, Day, Document, Failure, Metrics, Pair, Request, RunError, Sample,
                                Sequence)
from sleep_rl.life import Life
from sleep_rl.rehearsal import Index
from sleep_rl.rewards import group_advantage
from sleep_rl.text import Ids, Texts


class Night:
    """The material of one consolidation, in the order in which the driver asks for it.

    `sender` 0 is the context window: the teacher writes about the documents of `day`. A memory level sends without a
    day: everything is replayed or rehearsed.
    """

    def __init__(self, life: Life, night: int, sender: int, day: Day | None):
        self.life, self.night, self.sender = life, night, sender
        self.where = {"night": night, "sender": sender, "day": day.name if day else f"level {sender}"}
        self.documents = day.documents if day else ()
        config = life.config if day else replace(life.config, sleep=replace(life.config.sleep, replay=1.0))
        self.config, self.shares = config, Shares.of(config)
        self.rng = random.Random(f"night {config.run.seed} {night} {sender}")
        self.round = 0
        self.rewards: Metrics = {}
        self.trained = self.sampled = 0.0
        self.last: Metrics = {}
        self.rows: list[Written] = []  # of the step's batch

    def write(self) -> None:
        """D ~ T: about each document with it in context, answers to rehearsed prompts, and self-replay from nothing."""
        life, config, seed = self.life, self.config, f"{self.night} {self.sender}"
        with life.console.phase(f"{self._name}: the teacher writes", total=None):
            behind, free = writing_requests(life.texts, self.documents, config, seed)
            prompts = life.index.draw(config.sleep.rehearse_written, self.rng) if config.sleep.rehearse else []
            again = rehearsal_requests(life.texts, prompts, config, seed)
            samples = self._sample(behind, TEACHER, config.sleep.min_p) + self._sample(free, TEACHER)
            data, left = readable(life.texts, samples)
            answers, unanswered = readable(life.texts, rehearsed(prompts, self._sample(again, TEACHER)))
        new, replay = ([w for w in data if w.replay == kind] for kind in (False, True))
        left = {k: v + unanswered[k] for k, v in left.items()}
        if (config.sleep.replay < 1 and not new) or (config.sleep.replay > 0 and not replay):
            raise RunError(f"{self._name}: the teacher wrote {len(new)} readable sequences about documents and "
                           f"{len(replay)} without; left out: {left}")
        life.journal.log("written", **self.where, new=len(new), replay=len(replay), rehearsed=len(answers),
                         prompts=len(life.index.prompts), **{k.replace(" ", "_"): v for k, v in left.items()},
                         examples=[life.texts.text(w.sequence_T) for w in new[:3] + replay[:3] + answers[:3]])
        self.new, self.free = Draw(new, self.rng), Draw(replay, self.rng)
        self.again = Weighted(answers, self.rng, life.index)

    @property
    def _name(self) -> str:
        return f"night {self.night}" + (f", level {self.sender} to {self.sender + 1}" if self.sender else "")

    def _replay(self, count: int) -> list[Written]:
        """Self-replay: a share of it rehearsed, as far as there is anything to rehearse."""
        again = self.again.take(round(self.config.sleep.rehearse * count))
        return again + self.free.take(count - len(again))

    def rounds(self) -> Iterator[range]:
        """The night's steps in rounds; the student is pushed after each, so samples are at most a round old."""
        steps, size = self.config.sleep.steps, self.config.sleep.steps_per_round
        with self.life.console.phase(f"{self._name}: seeding", total=steps) as self.tick:
            for start in range(0, steps, size):
                yield range(start, min(start + size, steps))
                self.round += 1

    def imitate(self, steps: int) -> None:
        """y ~ S(.|x) for the coming `steps`, and their rewards (equations 4 and 5)."""
        config, texts, shares = self.config, self.life.texts, self.shares
        taken = self.new.take(shares.groups_new * steps) + self._replay(shares.groups_replay * steps)
        prefixes = [cut(w, config, self.rng) for w in taken]
        samples = self._sample(continuation_requests(texts, prefixes, config, self.rng), STUDENT)
        rewards = None
        if config.sleep.alpha < 1 and samples:
            rewards, self.rewards = self.life.crew.score(pairs_of(prefixes, samples, config.sleep.group))
            self.life.count_failures("reward", rewards)
        groups = student_rows(texts, prefixes, samples, rewards, config)
        new = shares.groups_new * steps
        self.groups_new, self.groups_replay = groups[:new], groups[new:]

    def batch(self) -> list[Sequence]:
        """The rows of the next step: groups of student samples and the teacher's own sequences, new and replayed."""
        shares, texts = self.shares, self.life.texts
        rows = [row for groups, count in ((self.groups_new, shares.groups_new),
                                          (self.groups_replay, shares.groups_replay))
                for _ in range(count) if groups for row in groups.pop()]
        self.rows = self.new.take(shares.teacher_new) + self._replay(shares.teacher_replay)
        self.before = len(rows)
        return rows + teacher_rows(texts, self.rows) + reading_rows(texts, self.new.take(self.config.sleep.reading))

    def learned(self, divergence_N: list[float]) -> None:
        """What the student has not yet taken over comes again sooner: divergence of the batch's rows, in order."""
        for written, divergence in zip(self.rows, divergence_N[self.before :], strict=False):
            if written.prompt_T:
                self.life.index.learned(written.prompt_T, divergence)

    def log(self, step: int, metrics: Metrics) -> None:
        """One journal record per optimizer step."""
        life = self.life
        life.journal.log("seed", **self.where, step=step, steps=self.config.sleep.steps, **metrics, **self.rewards)
        self.trained += metrics["tokens_trained"]
        self.last = metrics
        self.tick(1, f"loss {metrics['loss']:.3f}")

    def close(self, seconds: float) -> None:
        """The journal's summary of the night; its own prompts are rehearsed from the next one on."""
        prompts = [w.sequence_T[:length] for w in self.new.data if (length := self.life.texts.x_length(w.sequence_T))]
        self.life.index.add(self.night, prompts, self.config.sleep.rehearse_prompts)
        self.life.journal.log("night", **self.where, steps=self.config.sleep.steps,
                              seconds=seconds, tokens_sampled=self.sampled, tokens_trained=self.trained,
                              loss=self.last.get("loss"), divergence=self.last.get("divergence"),
                              reward_mean=self.rewards.get("reward_mean"))

    def _sample(self, requests_N: list[Request], name: str, min_p: float = 0.0) -> list[Sample | Failure]:
        life = self.life
        samples = life.sample(requests_N, name, life.task.max_new_tokens, self.config.sleep.temperature, min_p,
                              **self.where, round=self.round)
        self.sampled += sum(len(s.completion_T) for s in samples if not isinstance(s, Failure))
        return samples


@dataclass(frozen=True)
class Written:
    """One sequence d of D: written by the teacher behind `context` + opener, ended by itself, with marker and answer."""

    context_T: Ids  # what the teacher had in front: bos, and the document unless it is replay
    sequence_T: Ids  # d, with eos
    replay: bool
    prompt_T: Ids = ()  # the rehearsed prompt that it begins with


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


def readable(texts: Texts, samples_N: list[Sample | Failure]) -> tuple[list[Written], dict[str, int]]:
    """(D, counts of what was left out and why): a sequence must end by itself and hold a question and an answer."""
    data, left = [], {"failed": 0, "unfinished": 0, "no answer": 0}
    plain = texts.context(None)
    for sample in samples_N:
        if isinstance(sample, Failure):
            left["failed"] += 1
        elif sample.finish_reason != "stop":
            left["unfinished"] += 1
        elif texts.split(sample.completion_T) is None:
            left["no answer"] += 1
        else:
            begun = sample.prompt_T[len(texts.opener) :]  # what it was asked, if it was
            data.append(Written(sample.context_T, sample.completion_T, sample.context_T == plain, begun))
    return data, left


class Draw:
    """Endless passes over D in random order: each sequence once before any comes again."""

    def __init__(self, data: list[Written], rng: random.Random):
        self.data, self.rng, self.order = data, rng, self._passes()

    def _passes(self) -> Iterator[Written]:
        while True:
            yield from self.rng.sample(self.data, len(self.data))

    def take(self, count: int) -> list[Written]:
        return [next(self.order) for _ in range(count)] if self.data else []


class Weighted:
    """Draws of rehearsed sequences, the more often the further the student still is from the teacher there."""

    def __init__(self, data: list[Written], rng: random.Random, index: Index):
        self.data, self.rng, self.index = data, rng, index

    def take(self, count: int) -> list[Written]:
        if not self.data or not count:
            return []
        return self.rng.choices(self.data, self.index.weights([w.prompt_T for w in self.data]), k=count)


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
                         behaviour_T=sample.logprobs_T, replay=prefix.written.replay,
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
    """Rows on the teacher's own sequences, questions included: what is written can be written again (self-replay)."""
    start = texts.context(None) + texts.opener
    return [Sequence(prompt_T=start, completion_T=w.sequence_T, teacher_T=w.context_T + texts.opener, replay=w.replay,
                     x_length=texts.x_length(w.sequence_T) or 0) for w in written]
