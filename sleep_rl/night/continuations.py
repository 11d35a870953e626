"""y ~ S(.|x): what the student continues, and the rows that come of it (Learning to Imitate)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Ids, Pair, Request, Sample, TrainingRow
from sleep_rl.night.sequences import TeacherSequence
from sleep_rl.rewards import group_advantage
from sleep_rl.session.prompts import PromptCodec


@dataclass(frozen=True)
class Prefix:
    """A random prefix of a teacher's sequence, for the student to continue."""

    sequence: TeacherSequence
    length: int

    @property
    def begun_T(self) -> Ids:
        """The tokens that the student is given."""
        return self.sequence.sequence_T[: self.length]

    @property
    def rest_T(self) -> Ids:
        """The teacher's own continuation d."""
        return self.sequence.sequence_T[self.length :]

    def prompt_tokens(self, codec: PromptCodec, completion_T: Ids) -> int:
        """Return how many tokens of a continuation still belong to the prompt x."""
        end = codec.x_length(self.begun_T + completion_T)
        if end is None:
            return len(completion_T)
        return max(end - self.length, 0)


def cut(sequence: TeacherSequence, config: Config, rng: random.Random) -> Prefix:
    """Cut a prefix: uniform between prefix_min and prefix_max of the sequence, at least one token
    on either side.
    """
    length = len(sequence.sequence_T)
    share = rng.uniform(config.imitation.prefix_min, config.imitation.prefix_max)
    return Prefix(sequence, min(max(int(share * length), 1), length - 1))


def continuation_requests(
    codec: PromptCodec, prefixes: list[Prefix], config: Config, rng: random.Random
) -> list[Request]:
    """Return `group` requests per prefix, without the document."""
    context = codec.context(None)
    return [
        Request(codec.opener + prefix.begun_T, context, rng.getrandbits(31))
        for prefix in prefixes
        for _ in range(config.imitation.group_size)
    ]


def reward_pairs(
    prefixes: list[Prefix], samples_N: list[Sample | Failure], group: int
) -> list[Pair | Failure]:
    """Return the student's continuation beside the teacher's of the same prefix, prefix
    excluded.
    """
    pairs: list[Pair | Failure] = []
    for i, sample in enumerate(samples_N):
        prefix = prefixes[i // group]
        if isinstance(sample, Failure):
            pairs.append(sample)
        else:
            pairs.append(Pair(sample.completion_T, prefix.rest_T, prefix.begun_T))
    return pairs


def student_rows(
    codec: PromptCodec,
    prefixes: list[Prefix],
    samples_N: list[Sample | Failure],
    rewards_N: list[float | Failure] | None,
    config: Config,
) -> list[list[TrainingRow]]:
    """Return one group of rows per prefix: both terms of equation 6 on the same student samples.

    A failed sample has no row; one whose reward failed has no advantage. `rewards_N` None:
    imitation is off.
    """
    size = config.imitation.group_size
    groups = []
    for i, prefix in enumerate(prefixes):
        members = slice(i * size, (i + 1) * size)
        advantages: list[float | None] = [None] * size
        if rewards_N is not None:
            advantages = group_advantage(rewards_N[members], config.imitation.scale_advantage)
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
        teacher=sequence.peer,
        x_length=prefix.prompt_tokens(codec, sample.completion_T),
        temperature=sequence.temperature,
    )
