"""The configuration of dreaming (paper.md section 4). See sleep_rl.config.schema."""

from __future__ import annotations

from dataclasses import dataclass, field

from sleep_rl.config.tasks import key, listed


@dataclass(frozen=True)
class CopiesConfig:
    """Isolated LoRA copies of the model, on which dreams are tried out."""

    lr: float = key(1e-3, "Peak learning rate.", above=0)
    epochs: int = key(10, "Epochs over the texts of the dream.", low=1)
    rank: int = key(32, "LoRA rank.", choices=(8, 16, 32, 64, 128, 256))
    alpha: float = key(64, "LoRA alpha.", above=0)
    seeds: int = key(
        3,
        "Training seeds per dream whose mean tau is rewarded. One more copy, which the "
        "reward does not use, measures the held-out gain.",
        low=1,
    )


@dataclass(frozen=True)
class Policy:
    """The expert that is trained on rewarded dreams to write better ones."""

    init: str = key(
        "previous",
        "Where a round's policy starts: from the last round's policy, or from the model itself.",
        choices=("previous", "base"),
    )
    lr: float = key(3e-4, "Peak learning rate.", low=0)
    epochs: int = key(
        2, "Epochs over the accepted dreams. 0: the model itself writes all dreams.", low=0
    )
    batch: int = key(10, "Dreams per optimizer step.", low=1)


@dataclass(frozen=True)
class DreamConfig:
    """Dreaming: ReST-EM over texts that improve the model (paper.md section 4)."""

    rounds: int = key(
        0,
        "Rounds of dreaming after each night (paper.md section 4). 0 switches dreaming off.",
        low=0,
    )
    tasks: int = key(12, "Tasks (C, tau) per round.", low=1)
    curriculum: str = key(
        "weakest",
        "How tasks are drawn: in proportion to 1 - accuracy of their day (a day not yet "
        "evaluated counts as 0), from the newest day only, or uniformly.",
        choices=("weakest", "newest", "uniform"),
    )
    dreams_per_task: int = key(15, "Dreams generated per task.", low=1)
    keep_top: int = key(4, "Dreams per task that are kept for their importance.", low=0)
    keep_random: int = key(1, "Dreams per task that are kept at random, in addition.", low=0)
    importance: str = key(
        "inner",
        "omega of a dream: inner product of its gradient with that of the loss on C "
        "(inner), norm of its gradient (norm), or the inner product minus the overlap with "
        "dreams already chosen (greedy, as GREATS). random: no selection.",
        choices=("inner", "norm", "greedy", "random"),
    )
    novelty: bool = key(
        True,
        "Activate one random expert per router while dreams are generated. Has an effect "
        "only if model.top_k is below the number of unlocked experts.",
    )
    temperature: float = key(1.0, "Sampling temperature of dreams.", above=0)
    max_tokens: int | None = key(
        None,
        f"Longest dream, in tokens. null: the task's own ({listed('dream_tokens')}). Tasks world "
        "and custom have one of their own only.",
        low=1,
    )
    steps: int = key(
        200, "Optimizer steps in which the model learns a night's rewarded dreams.", low=1
    )
    copies: CopiesConfig = field(default_factory=CopiesConfig)
    policy: Policy = field(default_factory=Policy)
