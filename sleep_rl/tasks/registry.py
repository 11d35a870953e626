"""From a config to its task."""

from __future__ import annotations

from dataclasses import asdict

from sleep_rl.config.schema import Config
from sleep_rl.config.tasks import MOST_DAYS
from sleep_rl.config.validation import check_experts
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Task
from sleep_rl.tasks.plugin import instantiate

NEEDED = (
    "name",
    "opener",
    "marker",
    "max_new_tokens",
    "max_answer_tokens",
    "days",
    "known",
    "grade",
    "sft_texts",
    "joint_texts",
    "base_checkpoint",
)
"""What a task has: see contracts.Task."""


def make_task(config: Config, record: str | None = None, days: int | None = None) -> Task:
    """Return the task that `task.name` names, with its section's keys.

    `record`: folder of the run on documents whose life it is, `days` its days so far. Raises
    InputError, also where the life of a task that itself says how long it is cannot be lived.
    Heavy modules are imported by the task that needs them.
    """
    task = _made(config, record, days)
    if not config.nights:
        check_experts(config, len(task.days()))
    return task


def _made(config: Config, record: str | None, days: int | None) -> Task:
    if config.task.name == "world":
        from sleep_rl.tasks.world.task import World

        return World(config.run.seed, **asdict(config.task.world))
    if config.task.name == "documents":
        from sleep_rl.tasks.documents.task import Documents
        from sleep_rl.tasks.world.task import World

        small = None if config.model.base else World(config.run.seed, **asdict(config.task.world))
        options, longest = (
            asdict(config.task.documents),
            config.rollouts.engine.get("max_model_len"),
        )
        if longest and not small:  # a guess without a tokenizer; a run counts tokens
            options["piece_tokens"] = max(
                min(options["piece_tokens"], longest - options["max_new_tokens"] - 8), 8
            )
        return Documents(**options, days=days, record=record, small=small)
    if config.task.name == "custom":
        own = config.task.custom
        task = instantiate(own.target, own.options, "task.custom.target", NEEDED)
        if not 0 < len(task.days()) <= MOST_DAYS:
            raise InputError(
                f"task.custom.target: a task of 1 to {MOST_DAYS} days, got {len(task.days())} from "
                f"{own.target}"
            )
        return task
    if config.task.name == "squad":
        from sleep_rl.tasks.squad.task import Squad

        return Squad(**asdict(config.task.squad))
    if config.task.name == "arc":
        from sleep_rl.tasks.arc.task import Arc

        return Arc(**asdict(config.task.arc))
    from sleep_rl.tasks.classify.task import Classify

    return Classify(**asdict(config.task.classify))
