"""The configuration of what a night minimises: divergence, imitation reward, and their checks.
See sleep_rl.config.schema.
"""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.config.tasks import key
from sleep_rl.divergences import DIVERGENCES


@dataclass(frozen=True)
class Imitation:
    """The imitation reward: the student continues prefixes of the teacher's sequences (equations 4
    to 6).
    """

    group_size: int = key(
        4,
        "Student completions per prefix, the group of the group-relative advantage (reward minus "
        "the group's mean, over its standard deviation).",
        low=2,
    )
    prefix: list = key(
        [0.1, 0.7],
        "Shortest and longest prefix that the student continues, as shares of the teacher's "
        "sequence; the lengths between are equally likely.",
    )
    importance_cap: float = key(
        2.0,
        "Upper bound of the truncated importance weight of samples from an older version.",
        above=0,
    )


@dataclass(frozen=True)
class Objective:
    """The loss L_KS (equations 3 and 6); alpha weighs its two terms."""

    on_policy: float = key(
        1.0,
        "lambda of equation 3: share of rows on student samples; equation 6 has 1.",
        low=0,
        high=1,
    )
    off_policy_first: float = key(
        0.0,
        "Share of a consolidation's steps, from its first, without student samples: off-policy rows"
        " converge faster, on-policy rows get further.",
        low=0,
        high=1,
    )
    alpha: float = key(
        0.5,
        "alpha of equation 6: weight of the divergence, 1 - alpha that of the imitation "
        "reward. 1 switches imitation off.",
        low=0,
        high=1,
    )
    divergence: str = key(
        "forward_kl",
        "Divergence of teacher and student, Div(T||S), over the full vocabulary.",
        choices=tuple(DIVERGENCES),
    )
    beta: float = key(
        0.5,
        "beta of the generalised Jensen-Shannon divergence, inside (0, 1); used with jsd only.",
        low=0,
        high=1,
    )
    hard_share: float = key(
        0.0,
        "Share of cross entropy with the answer y in the loss of off-policy rows whose y is a part "
        "of a sentence of the document, not the teacher's own answer; the rest is the divergence. "
        "The teacher may prefer another first word than that of such a y. 0: equations 3 and 6.",
        low=0,
        high=1,
    )
    mean: str = key(
        "token",
        "Mean of the divergence over a batch: over the tokens of all sequences, or over each "
        "sequence's tokens first and then over sequences, E_{y~S} Div(T||S)(y|x) of equation 6, in "
        "which a short answer weighs as much as a long one.",
        choices=("token", "sequence"),
    )
    prompt_weight: float = key(
        0.2,
        "Weight of the divergence on the prompt x of a teacher's sequence, relative to its "
        "answer y (default: task world's). Above 0 the student learns to generate prompts, too.",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class Checks:
    """Tolerances for the mismatch of rollout engine and learner."""

    logprob_gap: float = key(
        1.0,
        "Largest mean log-probability difference between rollout engine and learner at the first "
        "step after a push, in nats per token. A larger one ends the run.",
        above=0,
    )
    probe: float | None = key(
        None,
        "Largest log-probability difference on the probe prompt after a push, in nats. "
        "null: 1e-3 in float32, 1.5 in bfloat16.",
        above=0,
    )


@dataclass(frozen=True)
class RewardConfig:
    """The reward of the imitation term (equations 4 and 5)."""

    gamma: float | None = key(
        None,
        "gamma of equation 4: weight of the semantic reward. null: 0.5 with a semantic "
        "reward, else 0.",
        low=0,
        high=1,
    )
    z0: float = key(
        0.5,
        "Cut-off z0 of equation 5: below 1 a share of the longer sequence, from 1 on a "
        "number of tokens.",
        above=0,
    )
    semantic: str = key(
        "none",
        "Semantic reward: none, a frozen encoder, a frozen language model as judge, or a "
        "class of your own.",
        choices=("none", "encoder", "judge", "custom"),
    )
    target: str | None = key(
        None,
        "custom: module:Class or path/to/file.py:Class, importable on every node. Its "
        "`score` maps a list of (student's text, teacher's text) to one number from 0 to 1 "
        "for each.",
    )
    options: dict = key({}, "custom: keyword arguments of the class.")
    model: str | None = key(None, "Path or hub name of the reward model. null: the base model.")
    threshold: float = key(
        0.9,
        "encoder: cosine similarity from which on two texts have the same meaning.",
        low=-1,
        high=1,
    )
    template: str = key(
        "First: {student}\nSecond: {teacher}\nSame meaning (yes or no):",
        "judge: prompt with the fields {student} and {teacher}; the next token, yes or no, "
        "is the verdict.",
    )
    timeout_s: float = key(
        30.0,
        "Deadline of a reward call in seconds; a sample without a reward by then has failed.",
        above=0,
    )
    workers: int = key(1, "Reward workers.", low=1)
    gpus: float = key(0.0, "GPUs per reward worker.", low=0)
