"""The configuration of evaluation: what is measured, what ends in a rollback, and baselines. See
sleep_rl.config.schema.
"""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.config.tasks import key

CLOSED = "closed"
GOLD = "gold"
RETRIEVAL = "retrieval"
ALL = "all"
MEMORY_RETRIEVAL = "memory+retrieval"
CONTEXTS = (CLOSED, GOLD, RETRIEVAL, ALL, MEMORY_RETRIEVAL)
"""Contexts of questions, beside the sleeping model closed book."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluation and the retention check."""

    questions: int | None = key(
        None, "Questions per column of the retention matrix. null: all.", low=1
    )
    contexts: list = key(
        list(CONTEXTS),
        "What questions are also asked with. gold: the document that answers them (open book), "
        "before the night. In natural language the untouched base is asked, also closed (without "
        "a document), with retrieval (the best pieces by BM25) and with all (as many documents as "
        "fit), and the sleeping model with memory+retrieval.",
    )
    max_drop: float | None = key(
        None,
        "Largest drop of accuracy, on the known or an earlier day, below the best so far; a night "
        "with a larger one is rolled back. Half of the questions decide, the other half is "
        "reported. null: no night is, and all questions are reported.",
        low=0,
        high=1,
    )
    max_drift: float | None = key(
        None,
        "Drift from the untouched base above which a night ends with a warning, in nats per "
        "token, on texts that the base wrote itself. null: none does.",
        low=0,
    )
    probes: list = key(
        [],
        "jsonl files that probe general ability, before and after the nights, each with a column: "
        "rows of query, choices and gold; of context_options, continuation and gold; or of "
        "context and continuation (a last word). At most 200 rows of each are asked.",
    )


@dataclass(frozen=True)
class Baselines:
    """Baselines on the same days."""

    run: list = key(
        ["sft", "joint"],
        "Baselines trained in the same run, by the names of the modules in "
        "sleep_rl/driver/baselines. sft: plain sequential fine-tuning on the task's texts "
        "(cross entropy on the raw documents for task documents). sft_self_written: cross "
        "entropy on the self-written sequences and self-replay of the night, in the same "
        "batches. joint: on the questions and answers of all days and the known at once (an "
        "upper bound).",
    )
    steps: dict = key(
        {},
        "Optimizer steps by baseline, of one training. Without an entry sft_self_written, and in "
        "natural language sft, takes sleep.steps; others have their own default.",
    )
    lr: float = key(5e-6, "Peak learning rate of the baselines.", low=0)
