"""One night (paper.md section 3): the teacher writes D, the student continues prefixes of it,
batches mix both.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import (
    STUDENT,
    TEACHER,
    Day,
    Ids,
    Metrics,
    Request,
    Sample,
    TrainingRow,
    other,
)
from sleep_rl.night.pipeline import rounds
from sleep_rl.night.samplers import DivergenceSampler, EpochSampler
from sleep_rl.night.sequences import (
    TeacherSequence,
    asked,
    continuation_requests,
    cut,
    document_requests,
    documents_of,
    packed,
    pairs_of,
    readable,
    reading_rows,
    rehearsal_requests,
    rehearsed,
    student_rows,
    teacher_rows,
    unpacked,
    whole_rows,
    writing_requests,
)
from sleep_rl.session.context import RunContext

DREAMS = -1
"""In place of a sender: what is learned are dreams."""


def seed(run: RunContext, data: Night) -> None:
    """(b) consolidate: minimises L_KS over the new expert (paper.md section 3), round by round of y
    ~ S(.|x) and r(y).
    """
    learn = run.crew.learn
    with closing(rounds(run, data)) as ahead:
        for sampled in ahead:
            for step, batch in zip(sampled.steps, sampled.batches, strict=True):
                result = learn.seed_step(batch.rows, step, data.config.sleep.steps)
                data.learned(sampled, step, result.metrics, result.divergence_N)


class Night:
    """The material of one consolidation, in the order in which the driver asks for it.

    `sender` 0 is the context window: the teacher writes about the documents of `day`. When a memory
    level sends, what is trained on is replayed or rehearsed. Beside it documents are read: the
    teacher's own, or those of the day, which the context window still holds then. In night 0 the
    models of model.teachers write, from nothing. With sender DREAMS what is new was `told`: the
    texts of accepted dreams, beside dream.replay_share of self-replay.
    """

    def __init__(
        self,
        run: RunContext,
        night: int,
        sender: int,
        day: Day | None,
        told: list[TeacherSequence] | None = None,
    ):
        self.run, self.night, self.sender = run, night, sender
        self.others = range(1, len(run.config.model.teachers) + 1) if night == 0 else ()
        self.told, config = told or [], run.config
        source = (
            "other models"
            if self.others
            else "dreams"
            if told
            else f"level {sender}"
            if sender
            else day.name
        )
        self.where = {"night": night, "sender": sender, "day": source}
        there = day.documents if day and config.replay.share < 1 else ()
        self.reads = there if config.reading.rows else ()
        self.documents = (
            there if sender == 0 else () if config.reading.synthetic_documents else self.reads
        )
        changed = (
            {"replay": {"share": 1.0}, "sleep": {"steps": config.steps(night, sender)}}
            if sender
            else {}
            if day
            else {"reading": {"rows": 0}}
        )
        # nothing is to be sampled from the student, so it need not be pushed before the end
        if told:
            steps = config.dream.steps
            changed = {
                "replay": {"share": config.dream.replay_share},
                "reading": {"rows": 0},
                "objective": {"on_policy": 0.0},
                "sleep": {"steps": steps, "steps_per_round": steps},
            }
        sections = {
            name: replace(getattr(config, name), **values) for name, values in changed.items()
        }
        self.config = config = replace(config, **sections)
        self.shares = Shares.of(config)
        self.rng = random.Random(f"night {config.run.seed} {night} {sender}")
        self.began, self.done = time.monotonic(), 0  # steps, in an earlier process
        self.trained = self.tokens = self.idle_s = 0.0
        self.last: Metrics = {}
        # of the phase that shows what is written, or the steps
        self.tick: Callable[..., None] = lambda n, note="": None

    def write(self) -> None:
        """D ~ T: about each document with it in context, answers to rehearsed prompts, and
        self-replay from nothing.
        """
        run, config, seed = self.run, self.config, f"{self.night} {self.sender}"
        behind, free = writing_requests(run.texts, self.documents, config, seed)
        prompts = (
            run.index.draw(config.rehearsal.samples, self.rng) if config.rehearsal.share else []
        )
        again = rehearsal_requests(run.texts, prompts, config, seed)
        anew = config.reading.synthetic_documents if self.reads else 0
        total = len(behind) + len(free) * (1 + len(self.others)) + len(again) + anew
        with run.console.phase(f"{self.title}: the teacher writes", total=total) as self.tick:
            samples = self._sample(behind, TEACHER, min_p=config.generation.min_p) + self._sample(
                free, TEACHER
            )
            data, left = readable(run.texts, samples, config.generation.min_confidence)
            new, replay = ([w for w in data if w.replay == kind] for kind in (False, True))
            sharp = config.rehearsal.temperature
            answers, unanswered = readable(
                run.texts,
                rehearsed(prompts, self._sample(again, TEACHER, temperature=sharp)),
                config.rehearsal.min_confidence,
            )
            answers = [replace(w, temperature=sharp) for w in answers]
            for k in self.others:
                told, lost = readable(run.texts, self._sample(free, other(k)))
                new += [replace(w, replay=False, teacher=k) for w in told]
                unanswered = {reason: count + lost[reason] for reason, count in unanswered.items()}
            own = self._read_anew() if anew else []
        new += self.told
        left = {k: v + unanswered[k] for k, v in left.items()}
        if (config.replay.share < 1 and not new) or (config.replay.share > 0 and not replay):
            raise RunError(
                f"{self.title}: the teacher wrote {len(new)} readable sequences about "
                "what is new and "
                f"{len(replay)} from nothing; left out: {left}"
            )
        run.journal.log(
            "written",
            **self.where,
            new=len(new),
            replay=len(replay),
            rehearsed=len(answers),
            prompts=len(run.index.prompts),
            read=len(own),
            **{k.replace(" ", "_"): v for k, v in left.items()},
            examples=[run.texts.text(w.sequence_T) for w in new[:3] + replay[:3] + answers[:3]],
        )
        self._hold(new, replay, answers, own)

    def _hold(
        self,
        new: list[TeacherSequence],
        replay: list[TeacherSequence],
        answers: list[TeacherSequence],
        own: list[TeacherSequence],
    ) -> None:
        self.new, self.free, self.own = (
            EpochSampler(new, self.rng),
            EpochSampler(replay, self.rng),
            EpochSampler(own, self.rng),
        )
        self.again = DivergenceSampler(answers, self.rng, self.run.index)

    def _read_anew(self) -> list[TeacherSequence]:
        """What the teacher writes about documents that it wrote itself, from nothing: no memory can
        answer for the reading.
        """
        texts, config = self.run.texts, self.config
        longest = max(len(texts.ids(document.text)) for document in self.reads)
        begun = document_requests(texts, self.config, f"{self.night} {self.sender}")
        contexts = documents_of(
            texts, self._sample(begun, TEACHER, tokens=longest, stop=texts.opener[:1])
        )
        seeds = random.Random(f"read {self.config.run.seed} {self.night} {self.sender}")
        requests = [Request(texts.opener, context, seeds.getrandbits(31)) for context in contexts]
        read = readable(
            texts,
            self._sample(requests, TEACHER, min_p=config.generation.min_p, shown=False),
            config.generation.min_confidence,
        )[0]
        # sampled as ever: questions of all sorts
        return [replace(w, temperature=config.rehearsal.temperature) for w in read]

    def safe(self, step: int) -> None:
        """Writes how far the night is after `step` steps, so that it can go on from there
        (stages.py).
        """
        version, internal, gauss = self.rng.getstate()
        counts = [self.trained, self.tokens, self.idle_s, time.monotonic() - self.began]
        state = {
            "where": self.where,
            "rng": [version, list(internal), gauss],
            "counts": counts,
            "last": self.last,
            "written": [packed(draw.data) for draw in (self.new, self.free, self.again, self.own)],
            "left": [self.new.left, self.free.left, self.own.left],
        }
        self.run.progress.save_partial(self.run, step, state)
        # as for a process that goes on from here, what comes begins with empty caches
        self.run.crew.forget()

    def goes_on(self) -> bool:
        """Takes back what `safe` wrote when this night was cut off behind it. Raises RunError for
        another night's.
        """
        part = self.run.progress.partial
        if part is None:
            return False
        try:
            if part.state["where"] != self.where:
                raise ValueError(f"it is of {part.state['where']}")
            version, internal, gauss = part.state["rng"]
            self.rng.setstate((version, tuple(internal), gauss))
            self._hold(*(unpacked(plain) for plain in part.state["written"]))
            self.new.left, self.free.left, self.own.left = (
                list(left) for left in part.state["left"]
            )
            self.trained, self.tokens, self.idle_s, seconds = part.state["counts"]
            self.began, self.last, self.done = (
                self.began - seconds,
                dict(part.state["last"]),
                part.step,
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RunError(
                f"{self.title}: {part.learner} and what lies beside it cannot be gone "
                f"on from ({error}); "
                "remove that folder to do this night from its beginning"
            ) from error
        self.run.crew.restore_progress(part.learner, part.step, self.config.sleep.steps)
        return True

    @property
    def title(self) -> str:
        return f"night {self.night}" + {0: "", DREAMS: ", dreams"}.get(
            self.sender, f", level {self.sender} to {self.sender + 1}"
        )

    def _replay(self, count: int) -> list[TeacherSequence]:
        """Self-replay: a share of it rehearsed, as far as there is anything to rehearse."""
        again = self.again.take(round(self.config.rehearsal.share * count))
        return again + self.free.take(count - len(again))

    def schedule(self) -> list[list[range]]:
        """The steps that are left: in rounds, after each of which the student is pushed, and these
        in parts, after each of which the night is safe.
        """
        sleep = self.config.sleep
        size, steps = sleep.steps_per_round, sleep.steps
        rounds = [range(start, min(start + size, steps)) for start in range(self.done, steps, size)]
        together = math.ceil(self.config.run.checkpoint_steps / size) or len(rounds) or 1
        return [rounds[start : start + together] for start in range(0, len(rounds), together)]

    def sampled(self, number: int, steps: range) -> Round:
        """y ~ S(.|x) for the coming `steps`, their rewards (equations 4 and 5), and the batches
        with all of it.
        """
        config, texts, shares, count = self.config, self.run.texts, self.shares, len(steps)
        taken = self.new.take(shares.groups_new * count) + self._replay(
            shares.groups_replay * count
        )
        prefixes = [cut(w, config, self.rng) for w in taken]
        samples = self._sample(
            continuation_requests(texts, prefixes, config, self.rng), STUDENT, round=number
        )
        rewards, metrics, began = None, {}, time.monotonic()
        if config.objective.alpha < 1 and samples:
            rewards, metrics = self.run.crew.score(
                pairs_of(prefixes, samples, config.imitation.group_size)
            )
            self.run.count_failures("reward", rewards)
        scored_s = time.monotonic() - began
        groups = student_rows(texts, prefixes, samples, rewards, config)
        new, replay = groups[: shares.groups_new * count], groups[shares.groups_new * count :]
        batches = tuple(self._batch(new, replay) for _ in steps)
        versions = [v for s in samples if not isinstance(s, Failure) for v in s.versions_T]
        return Round(
            number,
            steps,
            batches,
            metrics,
            min(versions, default=0),
            max(versions, default=0),
            scored_s,
        )

    def _batch(self, new: list[list[TrainingRow]], replay: list[list[TrainingRow]]) -> Batch:
        """The rows of a step: groups of student samples and the teacher's own sequences, new and
        replayed.
        """
        shares, texts = self.shares, self.run.texts
        rows = [
            row
            for groups, count in ((new, shares.groups_new), (replay, shares.groups_replay))
            for _ in range(count)
            if groups
            for row in groups.pop()
        ]
        written = self.new.take(shares.teacher_new) + self._replay(shares.teacher_replay)
        count = self.config.reading.rows
        reading = whole_rows(texts, self.own.take(count)) or reading_rows(
            texts, self.new.take(count)
        )
        if not rows and not written:
            raise RunError(
                f"{self.title}: nothing to train on: every sample of the round failed "
                "(the journal's `failure` "
                "records say why); nothing of this night was applied"
            )
        return Batch(rows + teacher_rows(texts, written) + reading, tuple(written), len(rows))

    def learned(
        self, sampled: Round, step: int, metrics: Metrics, divergence_N: list[float]
    ) -> None:
        """One journal record per optimizer step. What the student has not yet taken over comes
        again sooner: divergence of the batch's rows, in order.
        """
        run, batch = self.run, sampled.batches[step - sampled.steps.start]
        for written, divergence in zip(batch.written, divergence_N[batch.first :], strict=False):
            if written.prompt_T:
                run.index.learned(written.prompt_T, divergence)
        gap, most = metrics.get("logprob_gap", 0.0), self.config.checks.logprob_gap
        if step == sampled.steps.start and gap > most:
            raise RunError(
                f"{self.title}, step {step}: sampler and learner differ by {gap:.2g} "
                "nats a token, allowed "
                f"are checks.logprob_gap = {most:g}; nothing of this night was applied"
            )
        run.journal.log(
            "seed",
            **self.where,
            step=step,
            steps=self.config.sleep.steps,
            **metrics,
            **sampled.rewards,
        )
        self.trained += metrics["tokens_trained"]
        self.last = {**metrics, **sampled.rewards}
        self.tick(1, f"loss {metrics['loss']:.3f}")

    def flowed(
        self, sampled: Round, trained_s: float, learner_waited_s: float, rollouts_waited_s: float
    ) -> None:
        """One journal record per round: how old its samples were, and who waited for what."""
        self.idle_s += learner_waited_s
        self.run.journal.log(
            "flow",
            **self.where,
            round=sampled.number,
            oldest=sampled.oldest,
            newest=sampled.newest,
            trained_s=trained_s,
            learner_waited_s=learner_waited_s,
            rollouts_waited_s=rollouts_waited_s,
            rewards_s=sampled.scored_s,
        )

    def close(self) -> None:
        """The journal's summary of the night; its own prompts are rehearsed from the next one
        on.
        """
        texts, config = self.run.texts, self.config
        learned = self.new.data if self.sender <= 0 else []  # not what was only read
        for data, most in (
            (learned, config.rehearsal.prompts),
            (self.free.data, config.rehearsal.unconditional_prompts),
        ):
            sound = [
                w.sequence_T[:n]
                for w in data
                if w.sure >= config.rehearsal.min_confidence and (n := asked(texts, w))
            ]
            self.run.index.add(self.night, sound, most)
        seconds, last = time.monotonic() - self.began, self.last
        self.run.journal.log(
            "night",
            **self.where,
            steps=self.config.sleep.steps,
            seconds=seconds,
            tokens_sampled=self.tokens,
            tokens_trained=self.trained,
            loss=last.get("loss"),
            divergence=last.get("divergence", last.get("divergence_replay")),
            reward_mean=last.get("reward_mean"),
            learner_idle=self.idle_s / max(seconds, 1e-9),
        )

    def _sample(
        self,
        requests_N: list[Request],
        name: str,
        round: int = 0,
        min_p: float = 0.0,
        tokens: int = 0,
        stop: Ids = (),
        shown: bool = True,
        temperature: float = 0.0,
    ) -> list[Sample | Failure]:
        """The student's samples are those of its own distribution: equations 3 and 6 are
        expectations under it. `tokens`: at most, if not the task's number; `stop`: see RunContext.sample;
        `shown`: they are among what the phase counts;
        `temperature`: if it is not that of generation.temperature.
        """
        run = self.run
        temperature = 1.0 if name == STUDENT else temperature or self.config.generation.temperature
        samples = run.sample(
            requests_N,
            name,
            tokens or run.task.max_new_tokens,
            temperature,
            min_p,
            stop,
            **self.where,
            round=round,
        )
        self.tokens += sum(len(s.completion_T) for s in samples if not isinstance(s, Failure))
        # the student's show in the steps
        self.tick(0 if name == STUDENT or not shown else len(samples))
        return samples


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, and which of them the teacher wrote: `written`, from row
    `first` on.
    """

    rows: list[TrainingRow]
    written: tuple[TeacherSequence, ...]
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
class Shares:
    """Rows of one optimizer step; derived from batch, replay, on_policy and group, printed by
    `plan`.
    """

    groups_new: int
    groups_replay: int
    teacher_new: int
    teacher_replay: int

    @staticmethod
    def of(config: Config) -> Shares:
        batch, group, share = config.sleep.batch, config.imitation.group_size, config.replay.share
        groups = round(config.objective.on_policy * batch / group)
        groups_replay = round(share * groups)
        teacher = batch - groups * group
        replay = min(max(round(share * batch) - groups_replay * group, 0), teacher)
        return Shares(groups - groups_replay, groups_replay, teacher - replay, replay)
