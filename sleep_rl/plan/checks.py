"""Rules that only the base model's shape or the task can show to be broken, and notes on what is
allowed but deserves a look.
"""

from __future__ import annotations

import math
import os

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Dreamer, Task
from sleep_rl.model.shape import HUB_NAME, Shape
from sleep_rl.night.plan import Shares
from sleep_rl.plan.actors import Actor
from sleep_rl.plan.sizes import (
    TASK_TOKENS,
    bytes_per_parameter,
    rank_batch,
    rollout_bytes,
    step_rows,
)
from sleep_rl.tasks.registry import make_task


def check_shape(config: Config, shape: Shape) -> None:
    """Rules between the config and the base model."""
    engine = config.rollout_engine
    parts = config.rollouts.tensor_parallel
    m = config.model
    longest = engine.get("max_model_len")
    if longest and shape.positions and longest > shape.positions:
        raise InputError(
            f"rollouts.engine.max_model_len: at most the {shape.positions} "
            "positions of the base model, "
            f"got {longest}"
        )
    document, new = TASK_TOKENS["world"]
    if longest and config.task.name == "world" and m.base is None and longest < document + new:
        raise InputError(
            f"rollouts.engine.max_model_len: at least {document + new}, a document "
            "of the task and "
            f"what is written about it, got {longest}"
        )
    if shape.heads % parts or (shape.kv_heads % parts and parts % shape.kv_heads):
        raise InputError(
            f"rollouts.tensor_parallel: must divide the base model's {shape.heads} heads and "
            "fit its "
            f"{shape.kv_heads} key-value heads, got {parts}"
        )
    cached = rollout_bytes(config, shape)[1]
    if longest and cached is not None and cached < longest:
        need = -(-longest * shape.cached_values * bytes_per_parameter(config) // parts)
        raise InputError(
            f"rollouts.engine.kv_cache_memory_bytes: at least {need}, one sequence "
            "of max_model_len = "
            f"{longest} tokens, got {engine['kv_cache_memory_bytes']}"
        )
    wanted = tuple(
        {"experts": m.experts, "d_low": m.d_low, "top_k": m.top_k} for _ in range(m.levels)
    )
    if shape.memory and shape.memory != wanted:
        raise InputError(
            f"model: its checkpoint {m.base} holds the memory {list(shape.memory)}, "
            "the config asks for "
            f"{list(wanted)}"
        )


def check_task(config: Config) -> tuple[Task | None, tuple[str, ...]]:
    """(the task as a run builds it, notes). Looks whether its documents can fit: a word is at least
    a token. A dataset of the hub is left to the run (no task), and noted.
    """
    name = config.task.name
    longest = config.rollouts.engine.get("max_model_len")
    path = getattr(getattr(config.task, name), "path", ".")
    if not os.path.exists(path) and HUB_NAME.fullmatch(path.partition(":")[0]):
        return None, (f"task.{name}.path: {path} is a dataset of the hub; it was not looked at",)
    task = make_task(config)
    for document in (d for day in task.days() for d in day.documents):
        least = len(document.text.split())
        if longest and least + task.max_new_tokens > longest:
            raise InputError(
                "rollouts.engine.max_model_len: at least "
                f"{least + task.max_new_tokens}, document "
                f"{document.id} and what is written about it, got {longest}"
            )
    if config.dream.rounds:
        _check_dreams(config, task)
    return task, ()


def _check_dreams(config: Config, task: Task) -> None:
    """A task with tau, whose C and dreams fit."""
    if not isinstance(task, Dreamer):
        raise InputError(
            f"dream.rounds: 0 with task {task.name}, which has no tau, got {config.dream.rounds}"
        )
    longest = config.rollouts.engine.get("max_model_len") or math.inf
    for t in (t for day in task.days() for t in task.dream_tasks(day)):
        if not t.context.text.strip() or not t.questions:
            raise InputError(
                f"task {t.id}: a context C and at least one question are needed for "
                "tau, got "
                f"{len(t.context.text.split())} words and {len(t.questions)} "
                "questions"
            )
        least = len(t.context.text.split()) + task.max_dream_tokens
        if least > longest:
            raise InputError(
                f"rollouts.engine.max_model_len: at least {least}, task {t.id} and "
                "a dream about it, got "
                f"{longest}"
            )


def notes_on(
    config: Config, shape: Shape, actors: tuple[Actor, ...], nights: int
) -> tuple[str, ...]:
    """What is allowed but deserves a look."""
    notes = []
    cores = os.cpu_count() or 1
    cpus = sum(a.count * a.cpus for a in actors)
    joins = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if config.cluster.backend == "ray" and not joins and cpus > cores:
        notes.append(
            f"{cpus:g} CPUs are asked for and this node has {cores}; join a cluster "
            "with cluster.address"
        )
    mine = rank_batch(config)
    ranks = config.learners.world_size
    if step_rows(config) % ranks:
        notes.append(
            f"sleep.batch + reading.rows = {step_rows(config)} does not divide by "
            f"{ranks} ranks; ranks with fewer than "
            f"{mine} sequences wait"
        )
    rows = Shares.of(config, config.replay.share, config.objective.on_policy)
    if rows.groups_new + rows.groups_replay == 0 and (
        config.objective.on_policy > 0 or config.objective.alpha < 1
    ):
        notes.append(
            f"objective.on_policy {config.objective.on_policy:g} of sleep.batch "
            f"{config.sleep.batch} is no group of "
            f"{config.imitation.group_size}: the student samples nothing and nothing is imitated"
        )
    if config.gamma == 0 and config.objective.alpha < 1:
        notes.append(
            "reward.gamma is 0: imitation is rewarded for equal tokens only, not for equal meaning"
        )
    if config.model.dtype == "bfloat16" and config.model.top_k < config.model.experts:
        notes.append(
            "top_k below experts in bfloat16: sampler and learner may route a few "
            "tokens differently"
        )
    if config.model.teachers:
        notes.append(
            "model.teachers: in night 0 each takes a rollout engine of its own, and its "
            "weights come on top of the "
            "learner's memory; hub names were not looked at"
        )
    most = config.most_experts(nights)[0]
    if config.dream.rounds and config.dream.novelty and config.model.top_k >= most:
        notes.append(
            f"dream.novelty: with model.top_k = {config.model.top_k} the routers of "
            "level 1 leave none of at most "
            f"{most} experts out, so none can be activated besides"
        )
    if shape.source.startswith("published"):
        notes.append(f"base model: {shape.source}; its own config.json was not read")
    return tuple(notes)
