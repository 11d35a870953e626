"""From a config to its task."""

from __future__ import annotations

from dataclasses import asdict

from sleep_rl.config.schema import Config
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


def make_task(config: Config) -> Task:
    """The task that `task.name` names, with its section's keys. Heavy modules are imported by the
    task that needs them.
    """
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
        return Documents(**options, small=small)
    if config.task.name == "custom":
        own = config.task.custom
        task = instantiate(own.target, own.options, "task.custom.target", NEEDED)
        if len(task.days()) != own.days:
            raise InputError(
                f"task.custom.days: {len(task.days())}, the days that {own.target} "
                f"has, got {own.days}"
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
