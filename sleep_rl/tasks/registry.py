"""Create the task that a config names."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import asdict
from typing import Any

from sleep_rl.config.schema import Config
from sleep_rl.config.tasks import MOST_DAYS, SECTIONS
from sleep_rl.config.validation import check_experts
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Task
from sleep_rl.tasks.plugin import instantiate

TASK_MEMBERS = (
    *Task.__annotations__,
    *(name for name, member in vars(Task).items() if inspect.isfunction(member) and name[0] != "_"),
)
"""Names of the attributes and methods of contracts.roles.Task, which a custom task must have."""


def make_task(config: Config, record: str | None = None, days: int | None = None) -> Task:
    """Return the task that `task.name` names, with its section's keys.

    `record`: folder of the run whose ingested documents are the task's, `days` the number of its
    days. Raises InputError, also if a task that decides its number of days needs more experts than
    there are. Heavy modules are imported by the task that needs them.
    """
    task = _task(config, record, days)
    if not config.nights:
        check_experts(config, len(task.days()))
    return task


def _task(config: Config, record: str | None, days: int | None) -> Task:
    """Create the task. Its class takes the keys of its section and those that `_common` names."""
    name = config.task.name
    if name == "world":
        return _world(config)
    if name == "documents":
        return _documents(config, record, days)
    if name == "custom":
        return _custom(config)
    return _class(name)(**asdict(config.task.section), **_common(config))


def _class(name: str) -> Any:
    """Import the class of a task of this repository."""
    module, _, class_name = SECTIONS[name].implementation.partition(":")
    return getattr(importlib.import_module(module), class_name)


def _common(config: Config) -> dict[str, Any]:
    """Return the keys of several tasks that have a value; for the others a class has its own."""
    values = {
        "days": config.nights,
        "order_seed": config.task.order_seed,
        "base_text": config.task.base_text,
        "max_dream_tokens": config.dream.max_tokens,
    }
    return {name: value for name, value in values.items() if value is not None}


def _world(config: Config) -> Any:
    return _class("world")(config.run.seed, **_common(config), **asdict(config.task.world))


def _documents(config: Config, record: str | None, days: int | None) -> Task:
    options = asdict(config.task.documents)
    longest = config.rollouts.engine.get("max_model_len")
    if not config.own_base and longest:  # a guess without a tokenizer; a run counts tokens
        fits = longest - options["max_new_tokens"] - 8
        options["piece_tokens"] = max(min(options["piece_tokens"], fits), 8)
    small = _world(config) if config.own_base else None
    return _class("documents")(**options, days=days, record=record, small=small)


def _custom(config: Config) -> Task:
    custom = config.task.custom
    task = instantiate(custom.target, custom.options, "task.custom.target", TASK_MEMBERS)
    if not 0 < len(task.days()) <= MOST_DAYS:
        raise InputError(
            f"task.custom.target: a task of 1 to {MOST_DAYS} days, got {len(task.days())} from "
            f"{custom.target}"
        )
    return task
