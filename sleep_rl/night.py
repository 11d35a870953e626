"""One night (paper.md section 3): the teacher writes D, the student continues prefixes of it, batches mix both.

`Night` talks to the workers; everything below it is a pure function of its inputs and a seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Iterator

from sleep_rl.config import Config
from sleep_rl.contracts import (STUDENT, TEACHER, Day, Document, Failure, Metrics, Pair, Request, RunError, Sample,
                                Sequence)
from sleep_rl.life import Life
from sleep_rl.rewards import group_advantage
from sleep_rl.text import Ids, Texts


class Night:
    """The material of one night, in the order in which the driver asks for it."""

    def __init__(self, life: Life, day: Day, night: int):
        self.life, self.day, self.night = life, day, night
        self.shares = Shares.of(life.config)
        self.rng = random.Random(f"night {life.config.run.seed} {night}")
        self.round = 0
        self.rewards: Metrics = {}
        self.trained = self.sampled = 0.0
        self.last: Metrics = {}

    def write(self) -> None:
        """D ~ T: sequences about each document, with it in context, and self-replay without any."""
        life = self.life
        with life.console.phase(f"night {self.night}: the teacher writes", total=None):
            behind, free = writing_requests(life.texts, self.day.documents, life.config, self.night)
            samples = self._sample(behind, TEACHER, life.config.sleep.min_p) + self._sample(free, TEACHER)
            data, left = readable(life.texts, samples)
        new, replay = ([w for w in data if w.replay == kind] for kind in (False, True))
        if (life.config.sleep.replay < 1 and not new) or (life.config.sleep.replay > 0 and not replay):
            raise RunError(f"night {self.night}: the teacher wrote {len(new)} readable sequences about documents and "
                           f"{len(replay)} without; left out: {left}")
        life.journal.log("written", day=self.day.name, night=self.night, new=len(new), replay=len(replay),
                         **{k.replace(" ", "_"): v for k, v in left.items()},
                         examples=[life.texts.text(w.sequence_T) for w in new[:3] + replay[:3]])
        self.new, self.replay = Draw(new, self.rng), Draw(replay, self.rng)

    def rounds(self) -> Iterator[range]:
        """The night's steps in rounds; the student is pushed after each, so samples are at most a round old."""
        steps, size = self.life.config.sleep.steps, self.life.config.sleep.steps_per_round
        with self.life.console.phase(f"night {self.night}: seeding", total=steps) as self.tick:
            for start in range(0, steps, size):
                yield range(start, min(start + size, steps))
                self.round += 1

    def imitate(self, steps: int) -> None:
        """y ~ S(.|x) for the coming `steps`, and their rewards (equations 4 and 5)."""
        config, texts, shares = self.life.config, self.life.texts, self.shares
        prefixes = [cut(w, config, self.rng) for draw, count in ((self.new, shares.groups_new),
                                                                 (self.replay, shares.groups_replay))
                    for w in draw.take(count * steps)]
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
        written = self.new.take(shares.teacher_new) + self.replay.take(shares.teacher_replay)
        return rows + teacher_rows(texts, written) + reading_rows(texts, self.new.take(self.life.config.sleep.reading))

    def log(self, step: int, metrics: Metrics) -> None:
        """One journal record per optimizer step."""
        life = self.life
        life.journal.log("seed", day=self.day.name, night=self.night, step=step, steps=life.config.sleep.steps,
                         **metrics, **self.rewards)
        self.trained += metrics["tokens_trained"]
        self.last = metrics
        self.tick(1, f"loss {metrics['loss']:.3f}")

    def close(self, seconds: float) -> None:
        """The journal's summary of the night."""
        self.life.journal.log("night", day=self.day.name, night=self.night, steps=self.life.config.sleep.steps,
                              seconds=seconds, tokens_sampled=self.sampled, tokens_trained=self.trained,
                              loss=self.last.get("loss"), divergence=self.last.get("divergence"),
                              reward_mean=self.rewards.get("reward_mean"))

    def _sample(self, requests_N: list[Request], name: str, min_p: float = 0.0) -> list[Sample | Failure]:
        life = self.life
        samples = life.sample(requests_N, name, life.task.max_new_tokens, life.config.sleep.temperature, min_p,
                              day=self.day.name, night=self.night, round=self.round)
        self.sampled += sum(len(s.completion_T) for s in samples if not isinstance(s, Failure))
        return samples


@dataclass(frozen=True)
class Written:
    """One sequence d of D: written by the teacher behind `context` + opener, ended by itself, with marker and answer."""

    context_T: Ids  # what the teacher had in front: bos, and the document unless it is replay
    sequence_T: Ids  # d, with eos
    replay: bool


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
                     night: int) -> tuple[list[Request], list[Request]]:
    """Prompts that the teacher continues: `written` per document with it in context, `replay_written` without any."""
    s = config.sleep
    behind = [texts.context(d) for d in documents for _ in range(s.written)] if s.replay < 1 else []
    free = [texts.context(None)] * (s.replay_written if s.replay > 0 else 0)
    seeds = random.Random(f"write {config.run.seed} {night}")
    behind, free = ([Request(texts.opener, c, seeds.getrandbits(31)) for c in contexts] for contexts in (behind, free))
    return behind, free


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
            data.append(Written(sample.context_T, sample.completion_T, sample.context_T == plain))
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
    down what the model does with its context, and later teachers write worse (measured: README)."""
    return [Sequence(prompt_T=w.context_T + texts.opener, completion_T=w.sequence_T, replay=True,
                     x_length=texts.x_length(w.sequence_T) or 0) for w in written]


def teacher_rows(texts: Texts, written: list[Written]) -> list[Sequence]:
    """Rows on the teacher's own sequences, questions included: what is written can be written again (self-replay)."""
    start = texts.context(None) + texts.opener
    return [Sequence(prompt_T=start, completion_T=w.sequence_T, teacher_T=w.context_T + texts.opener, replay=w.replay,
                     x_length=texts.x_length(w.sequence_T) or 0) for w in written]
