"""Checks of a config against the base model and the task, and notes on questionable values."""

from __future__ import annotations

import math
import os

from sleep_rl.config.schema import Config
from sleep_rl.config.tasks import WorldConfig
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Dreamer, Task
from sleep_rl.driver.measures import probes
from sleep_rl.model.memory_shape import check_first_layer, memory_of
from sleep_rl.model.shape import HUB_NAME, Shape
from sleep_rl.night.plan import Shares
from sleep_rl.plan.actors import Actor
from sleep_rl.plan.sizes import (
    bytes_per_parameter,
    rollout_bytes,
    step_rows,
)
from sleep_rl.tasks.registry import make_task

LEAST_ROWS = 4  # sequences per rank and step from which on ranks are about equally busy


def check_shape(config: Config, shape: Shape) -> None:
    """Check the engine's options and the memory against the base model.

    Raises InputError where max_model_len, the KV cache, the tensor-parallel size, the layers with
    memory or the memory of a sleep checkpoint do not fit.
    """
    engine = config.rollout_engine
    tensor_parallel = config.rollouts.tensor_parallel
    m = config.model
    max_model_len = engine.get("max_model_len")
    if max_model_len and shape.positions and max_model_len > shape.positions:
        raise InputError(
            f"rollouts.engine.max_model_len: at most the {shape.positions} positions of the base "
            f"model, got {max_model_len}"
        )
    document, generated = WorldConfig.text_tokens
    needed = document + generated
    small_world = config.task.name == "world" and m.base is None
    if max_model_len and small_world and max_model_len < needed:
        raise InputError(
            f"rollouts.engine.max_model_len: at least {needed}, a document of the task and a "
            f"generated sequence, got {max_model_len}"
        )
    replicated = tensor_parallel % shape.kv_heads == 0  # vLLM then copies the key-value heads
    if shape.heads % tensor_parallel or (shape.kv_heads % tensor_parallel and not replicated):
        raise InputError(
            f"rollouts.tensor_parallel: must divide the base model's {shape.heads} heads and fit "
            f"its {shape.kv_heads} key-value heads, got {tensor_parallel}"
        )
    cached_tokens = rollout_bytes(config, shape)[1]
    if max_model_len and cached_tokens is not None and cached_tokens < max_model_len:
        sequence_bytes = max_model_len * shape.cached_values * bytes_per_parameter(config)
        raise InputError(
            "rollouts.engine.kv_cache_memory_bytes: at least "
            f"{-(-sequence_bytes // tensor_parallel)}, one sequence of max_model_len = "
            f"{max_model_len} tokens, got {engine['kv_cache_memory_bytes']}"
        )
    check_first_layer(m.first_layer, shape.layers)
    configured = tuple(memory_of(config))
    if shape.memory and shape.memory != configured:
        raise InputError(
            f"model: its checkpoint {m.base} has the memory {list(shape.memory)}, the config "
            f"{list(configured)}"
        )


def check_task(config: Config) -> tuple[Task | None, tuple[str, ...]]:
    """Create the task and check that its documents can fit into max_model_len; read the probes.

    A document has at least as many tokens as words. Returns (the task, notes); the task is None for
    a dataset of the hub, which is only loaded by the run. Raises InputError.
    """
    name = config.task.name
    max_model_len = config.rollouts.engine.get("max_model_len")
    path = config.task.section.path if config.task.section.on_hub else "."
    if not os.path.exists(path) and HUB_NAME.fullmatch(path.partition(":")[0]):
        return None, (f"task.{name}.path: {path} is a dataset of the hub; it was not checked",)
    task = make_task(config)
    probes.check(config.evaluate.probes, natural=not (task.opener or task.marker))
    for document in (d for day in task.days() for d in day.documents):
        min_tokens = len(document.text.split()) + task.max_new_tokens
        if max_model_len and min_tokens > max_model_len:
            raise InputError(
                f"rollouts.engine.max_model_len: at least {min_tokens}, document {document.id} and "
                f"a generated sequence, got {max_model_len}"
            )
    if config.dream.rounds:
        _check_dreams(config, task)
    return task, ()


def _check_dreams(config: Config, task: Task) -> None:
    """Check that the task has tau, and that each C with a dream fits into max_model_len."""
    if not isinstance(task, Dreamer):
        raise InputError(
            f"dream.rounds: 0 with task {task.name}, which has no tau, got {config.dream.rounds}"
        )
    max_model_len = config.rollouts.engine.get("max_model_len") or math.inf
    for t in (t for day in task.days() for t in task.dream_tasks(day)):
        if not t.context.text.strip() or not t.questions:
            raise InputError(
                f"task {t.id}: a context C and at least one question are needed for tau, got "
                f"{len(t.context.text.split())} words and {len(t.questions)} questions"
            )
        min_tokens = len(t.context.text.split()) + task.max_dream_tokens
        if min_tokens > max_model_len:
            raise InputError(
                f"rollouts.engine.max_model_len: at least {min_tokens}, task {t.id} and a dream "
                f"about it, got {max_model_len}"
            )


def notes_on(
    config: Config, shape: Shape, actors: tuple[Actor, ...], nights: int, tokens: int
) -> tuple[str, ...]:
    """Return one line for each combination that is valid, but probably not intended; `tokens`: of
    the longest sequence.
    """
    notes = []
    cores = os.cpu_count() or 1
    cpus = sum(a.count * a.cpus for a in actors)
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if config.cluster.backend == "ray" and not address and cpus > cores:
        notes.append(
            f"{cpus:g} CPUs are requested and this node has {cores}; join a cluster with "
            "cluster.address"
        )
    ranks = config.learners.world_size
    if ranks > 1 and step_rows(config) < LEAST_ROWS * ranks:
        notes.append(
            f"sleep.batch + reading.rows = {step_rows(config)} are fewer than {LEAST_ROWS} "
            f"sequences for each of {ranks} ranks; the others wait for the rank with the longest"
        )
    if tokens > config.learners.pass_tokens:
        notes.append(
            f"learners.pass_tokens = {config.learners.pass_tokens} is less than the longest "
            f"sequence, {tokens} tokens; such sequences are computed one by one"
        )
    notes += _notes_on_rows(config)
    if config.gamma == 0 and config.objective.alpha < 1:
        notes.append("reward.gamma is 0: the imitation reward compares tokens only, not meaning")
    if config.model.dtype == "bfloat16" and config.model.top_k < config.model.experts:
        notes.append(
            "top_k below experts in bfloat16: rollout engine and learner may route some tokens "
            "differently"
        )
    if config.model.teachers:
        notes.append(
            "model.teachers: in night 0 each has a rollout engine of its own, and its weights are "
            "held by the learner, too; hub names were not checked"
        )
    most = config.most_experts(nights)[0]
    if config.dream.rounds and config.dream.novelty and config.model.top_k >= most:
        notes.append(
            f"dream.novelty: with model.top_k = {config.model.top_k} the routers of level 1 "
            f"activate all of at most {most} experts, so there is no additional one to activate"
        )
    if shape.source.startswith("published"):
        notes.append(f"base model: {shape.source}; its own config.json was not read")
    return tuple(notes)


def _notes_on_rows(config: Config) -> list[str]:
    """Return notes on what the rows of a batch cannot do."""
    rows = Shares.of(config, config.replay.share, config.objective.on_policy)
    on_policy = f"objective.on_policy {config.objective.on_policy:g}"
    notes = []
    if rows.groups_new + rows.groups_replay == 0 and (
        config.objective.on_policy > 0 or config.objective.alpha < 1
    ):
        notes.append(
            f"{on_policy} of sleep.batch {config.sleep.batch} is less than one group of "
            f"{config.imitation.group_size}: the student samples nothing, so there is no imitation "
            "reward"
        )
    by_divergence = config.rehearsal.share > 0 and config.rehearsal.priority == "divergence"
    if by_divergence and config.replay.share > 0 and rows.teacher_replay == 0:
        notes.append(
            f"rehearsal.priority: with {on_policy} no teacher sequence is rehearsed in a batch, so "
            "no divergence is measured and all weights are equal"
        )
    return notes
