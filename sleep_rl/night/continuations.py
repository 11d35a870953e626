"""Student continuations y ~ S(.|x) of teacher prefixes, and their training rows (section 3 b)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Ids, Pair, Request, Sample, TrainingRow
from sleep_rl.night.sequences import TeacherSequence
from sleep_rl.rewards import group_advantage
from sleep_rl.text.codec import PromptCodec


@dataclass(frozen=True)
class Prefix:
    """A prefix of a teacher's sequence, for the student to continue."""

    sequence: TeacherSequence
    length: int  # tokens

    @property
    def tokens_T(self) -> Ids:
        """The tokens of the prefix."""
        return self.sequence.sequence_T[: self.length]

    @property
    def teacher_continuation_T(self) -> Ids:
        """The teacher's continuation d: the rest of the sequence."""
        return self.sequence.sequence_T[self.length :]

    def prompt_tokens(self, codec: PromptCodec, completion_T: Ids) -> int:
        """Return the number of tokens of a continuation that belong to the prompt x."""
        if self.length >= self.sequence.x_length:
            return 0
        end = codec.x_length(self.tokens_T + completion_T)
        if end is None:
            return len(completion_T)
        return max(end - self.length, 0)


def cut(
    codec: PromptCodec, sequence: TeacherSequence, config: Config, rng: random.Random
) -> Prefix:
    """Draw the prefix of a sequence: its share is uniform between those of imitation.prefix, and
    both sides have at least one token.

    In a form in which the student does not generate prompts the prefix includes all of x.
    """
    length = len(sequence.sequence_T)
    shortest, longest = config.imitation.prefix
    share = rng.uniform(shortest, longest)
    least = 1 if codec.form.within_prompt else max(sequence.x_length, 1)
    return Prefix(sequence, min(max(int(share * length), least), length - 1))


def continuation_requests(
    prefixes: list[Prefix], config: Config, rng: random.Random
) -> list[Request]:
    """Return imitation.group_size requests per prefix, without the document."""
    return [
        Request(prefix.tokens_T, prefix.sequence.bare_T, rng.getrandbits(31))
        for prefix in prefixes
        for _ in range(config.imitation.group_size)
    ]


def reward_pairs(
    prefixes: list[Prefix], samples_N: list[Sample | Failure], group: int
) -> list[Pair | Failure]:
    """Pair each student continuation with the teacher's of the same prefix, for the reward.

    `group`: samples per prefix. A failed sample stays a Failure.
    """
    pairs: list[Pair | Failure] = []
    for i, sample in enumerate(samples_N):
        prefix = prefixes[i // group]
        if isinstance(sample, Failure):
            pairs.append(sample)
        else:
            pair = Pair(sample.completion_T, prefix.teacher_continuation_T, prefix.tokens_T)
            pairs.append(pair)
    return pairs


def student_rows(
    codec: PromptCodec,
    prefixes: list[Prefix],
    samples_N: list[Sample | Failure],
    rewards_N: list[float | Failure] | None,
    config: Config,
) -> list[list[TrainingRow]]:
    """Return one group of rows per prefix, for both terms of equation 6 on the student's samples.

    A failed sample has no row; a sample whose reward failed has no advantage. `rewards_N` None: the
    imitation term is off.
    """
    size = config.imitation.group_size
    groups = []
    for i, prefix in enumerate(prefixes):
        members = slice(i * size, (i + 1) * size)
        advantages: list[float | None] = [None] * size
        if rewards_N is not None:
            advantages = group_advantage(rewards_N[members])
        rows = [
            _student_row(codec, prefix, sample, advantage)
            for sample, advantage in zip(samples_N[members], advantages, strict=True)
            if not isinstance(sample, Failure)
        ]
        groups.append(rows)
    return groups


def _student_row(
    codec: PromptCodec, prefix: Prefix, sample: Sample, advantage: float | None
) -> TrainingRow:
    sequence = prefix.sequence
    return TrainingRow(
        prompt_T=sample.context_T + sample.prompt_T,
        completion_T=sample.completion_T,
        teacher_T=sequence.context_T + sample.prompt_T,
        advantage=advantage,
        behaviour_T=sample.logprobs_T,
        replay=sequence.replay,
        teacher=sequence.teacher,
        x_length=prefix.prompt_tokens(codec, sample.completion_T),
        temperature=sequence.temperature,
        shared=sequence.shared,
    )
