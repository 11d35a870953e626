"""What a config asks for, before anything starts: actors, memory, bytes of a weight push, steps,
samples, time.

`plan` also refuses what only the base model's shape can show to be wrong. Bytes and tokens are
exact where they follow from shapes; activations and times are rough, and say so. Sizes are decimal:
1 MB = 1e6 bytes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import InputError
from sleep_rl.contracts.roles import Dreamer, Task
from sleep_rl.driver.baselines import registry
from sleep_rl.model.shape import HUB_NAME, Shape, base_shape, local_folder
from sleep_rl.night.plan import Shares
from sleep_rl.plan.gpu_fit import check_fit, check_shares
from sleep_rl.schedule import ScheduledConsolidation
from sleep_rl.tasks import plugin
from sleep_rl.tasks.registry import make_task

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
TASK_TOKENS = {
    "world": (34, 16),
    "documents": (34, 16),
    "classify": (134, 48),
    "squad": (450, 64),
    "arc": (4000, 1024),
}
"""Longest document and longest text written about it, in tokens of the task's own vocabulary."""
LEARN_FLOPS = {"cpu": 60e9, "gpu": 150e12}  # per thread, per device
SAMPLE_FLOPS = {"cpu": 18e9, "gpu": 50e12}
"""Assumed throughput in FLOP/s. The CPU figures are what the demo's toy model reached; large models
do better.
"""


@dataclass(frozen=True)
class Actor:
    """One role: `count` processes with `cpus` and `gpus` each."""

    role: str
    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Bytes:
    """Of one process. `activations` is rough; `cache` is None where vLLM takes what its GPU has
    left.
    """

    base: int
    memory: int
    optimizer: int = 0
    activations: int = 0
    cache: int | None = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) or 0 for f in fields(self))


@dataclass(frozen=True)
class Plan:
    config: Config
    base: Shape
    actors: tuple[Actor, ...]
    learner: Bytes  # per rank
    rollout: Bytes  # per engine, over all its GPUs
    critic: Bytes | None  # per critic: engine, torch model and copies; None without dreaming
    cached_tokens: int | None  # that the KV cache of an engine holds
    push_bytes: int  # one expert of one level, over all layers
    full_bytes: int  # every parameter
    tokens: int  # of a longest training sequence with its document
    rows: Shares  # of an optimizer step
    written: int  # sequences with a document, per night
    replayed: int  # sequences without one, per night
    completions: int  # of the student, per night
    micro_batches: int  # per optimizer step and rank
    rounds: int  # per night; each ends with a push of the student
    seconds: float  # of all nights, rough
    nights: int
    consolidations: tuple[ScheduledConsolidation, ...]  # of all nights
    notes: tuple[str, ...]

    @property
    def cpus(self) -> float:
        return sum(a.count * a.cpus for a in self.actors)

    @property
    def gpus(self) -> float:
        return sum(a.count * a.gpus for a in self.actors)

    @property
    def token_bytes(self) -> int:
        """Of one token in a KV cache."""
        return self.base.cached_values * _width(self.config)

    @property
    def steps(self) -> int:
        """Optimizer steps of all nights, without baselines."""
        return sum(consolidation.steps for consolidation in self.consolidations)


def plan(config: Config) -> Plan:
    """Works everything out from the config and the base model's shape. Starts nothing. Raises
    InputError.
    """
    registry.check(config)
    shape = base_shape(config)
    _check_shape(config, shape)
    check_shares(config)
    task, notes = _check_task(config)
    named = [("model.teachers", name) for name in config.model.teachers]
    if config.reward.target:
        plugin.load_class(config.reward.target, "reward.target")
    if config.reward.semantic != "none" and config.reward.model:
        named.append(("reward.model", config.reward.model))
    for key, name in named:  # a hub name is left to the run
        local_folder(name, key)
    tokens = _tokens(config, task)
    rollout, cached_tokens = _rollout_bytes(config, shape)
    s = config.sleep
    rows = Shares.of(config, config.replay.share, config.objective.on_policy)
    replay, rehearsal, reading = config.replay, config.rehearsal, config.reading
    written = _documents(config, task) * config.generation.samples if replay.share < 1 else 0
    answered = rehearsal.samples if rehearsal.share else 0
    replayed = replay.samples + answered if replay.share > 0 else 0
    # texts, and at most one question about each
    replayed += 2 * reading.synthetic_documents if reading.rows and replay.share < 1 else 0
    completions = s.steps * (rows.groups_new + rows.groups_replay) * config.imitation.group_size
    actors = actors_of(config)
    nights = len(task.days()) if task else config.nights or 1
    consolidations = tuple(config.schedule(nights))
    steps = sum(consolidation.steps for consolidation in consolidations)
    found = Plan(
        config=config,
        base=shape,
        actors=actors,
        learner=_learner_bytes(config, shape, tokens),
        rollout=rollout,
        cached_tokens=cached_tokens,
        critic=_critic_bytes(config, shape, rollout) if config.dream.rounds else None,
        push_bytes=expert_bytes(config, shape),
        full_bytes=shape.parameters * _width(config) + memory_bytes(config, shape),
        tokens=tokens,
        rows=rows,
        written=written,
        replayed=replayed,
        completions=completions,
        micro_batches=math.ceil(rank_batch(config) / config.learners.micro_batch),
        rounds=math.ceil(s.steps / s.steps_per_round),
        seconds=steps
        / s.steps
        * _night_seconds(config, shape, tokens, written + replayed + completions),
        nights=nights,
        consolidations=consolidations,
        notes=notes + _notes(config, shape, actors, nights),
    )
    check_fit(found)
    return found


# ---- sizes


def expert_bytes(config: Config, shape: Shape) -> int:
    """What a push of one expert of one level carries: router row, A and B in every layer, and the
    slots' states.
    """
    m, d = config.model, shape.hidden
    return shape.layers * ((d + 3 * m.d_low * d) * _width(config) + m.experts + 1)


def memory_bytes(config: Config, shape: Shape) -> int:
    """Every slot of every level and layer; slot 0 is the level's own base expert."""
    m, d, slots = config.model, shape.hidden, config.model.experts + 1
    return m.levels * shape.layers * slots * ((d + 3 * m.d_low * d) * _width(config) + 1)


def _learner_bytes(config: Config, shape: Shape, tokens: int) -> Bytes:
    """Per rank: the frozen base once (teacher and student are states of it), the plastic expert
    with AdamW in fp32.
    """
    ranks, width = config.learners, _width(config)
    sharded = {stage: ranks.world_size if ranks.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    plastic = shape.layers * shape.hidden * (1 + 3 * config.model.d_low)
    # fp32 master copy and two moments (stage 1), gradient (stage 2), the trained copy itself (stage
    # 3)
    optimizer = int(plastic * (12 / sharded[1] + width / sharded[2] + width / sharded[3]))
    rows = min(rank_batch(config), ranks.micro_batch)
    # Per layer about 10 tensors of the hidden width and 3 of the MLP's are kept for the backward
    # pass.
    kept = rows * tokens * shape.layers * (10 * shape.hidden + 3 * shape.intermediate) * width
    # Teacher's and student's logits of a chunk in fp32, and a gradient and a log-softmax beside
    # them.
    logits = 4 * 4 * config.learners.logit_chunk * shape.vocab
    return Bytes(shape.parameters * width, memory_bytes(config, shape), optimizer, kept + logits)


def _rollout_bytes(config: Config, shape: Shape) -> tuple[Bytes, int | None]:
    """Of one engine, and how many tokens its KV cache holds. The memory is there once per named
    state.
    """
    per_token = shape.cached_values * _width(config)
    parts = _parallel(config)
    given = config.rollout_engine.get("kv_cache_memory_bytes")  # vLLM counts it per GPU
    cache = None if given is None else given * parts
    size = Bytes(shape.parameters * _width(config), 2 * memory_bytes(config, shape), cache=cache)
    return size, None if cache is None else cache // per_token


def _critic_bytes(config: Config, shape: Shape, rollout: Bytes) -> Bytes:
    """An engine with `critics.engine`'s options, the same model in torch, and `critics.copies_per_pass`
    LoRA copies: factor, gradient and two moments in float32, in every projection.
    """
    inside, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = (
        2 * (shape.hidden + inside)
        + 2 * (shape.hidden + kv)
        + 3 * (shape.hidden + shape.intermediate)
    )
    copies = (
        config.critics.copies_per_pass
        * shape.layers
        * layer
        * config.dream.copies.rank
        * 4
        * DTYPE_BYTES["float32"]
    )
    cache = config.critic_engine.get("kv_cache_memory_bytes")
    return Bytes(
        2 * rollout.base, rollout.memory + memory_bytes(config, shape), copies, cache=cache
    )


def _night_seconds(config: Config, shape: Shape, tokens: int, sampled: int) -> float:
    """Learning and sampling take turns. 2 FLOPs per parameter and token forward; the base's weights
    get no gradient, so backward costs 2 too: teacher, student, backward = 6.
    """
    learners, rollouts = config.learners, config.rollouts
    learn = learners.world_size * _flops(LEARN_FLOPS, learners.gpus, learners.threads)
    sample = rollouts.workers * _flops(SAMPLE_FLOPS, rollouts.gpus, rollouts.threads)
    learned = config.sleep.batch * config.sleep.steps
    return shape.parameters * tokens * (6 * learned / learn + 2 * sampled / sample)


def _flops(assumed: dict[str, float], gpus: float, threads: int) -> float:
    return assumed["gpu"] * gpus if gpus else assumed["cpu"] * threads


def actors_of(config: Config) -> tuple[Actor, ...]:
    """Every kind of worker of a run; `cluster.crew` asks the cluster for these."""
    rollouts, learners, reward = config.rollouts, config.learners, config.reward
    kinds = ("reward",) if reward.semantic == "none" else ("reward", "semantic")
    rewards = tuple(
        Actor(kind, reward.workers, reward.cpus, reward.gpus if kind == "semantic" else 0.0)
        for kind in kinds
    )
    others = len(config.model.teachers)
    # in night 0 only
    teachers = (Actor("other", others, rollouts.cpus, rollouts.gpus),) if others else ()
    c = config.critics
    critics = (Actor("critic", c.workers, c.cpus, c.gpus),) if config.dream.rounds else ()
    return (
        Actor("rollout", rollouts.workers, rollouts.cpus, rollouts.gpus),
        *teachers,
        Actor("learner", learners.world_size, learners.cpus, learners.gpus),
        *rewards,
        *critics,
    )


def _width(config: Config) -> int:
    return DTYPE_BYTES[config.model.dtype]


def _parallel(config: Config) -> int:
    return config.rollouts.tensor_parallel


def rank_batch(config: Config) -> int:
    """Rows of an optimizer step per learner rank."""
    return math.ceil(step_rows(config) / config.learners.world_size)


def step_rows(config: Config) -> int:
    """Rows of an optimizer step: the batch, and those that keep the reading where documents are
    read.
    """
    return config.sleep.batch + (config.reading.rows if config.replay.share < 1 else 0)


def _documents(config: Config, task: Task | None) -> int:
    """Documents a day: one per person, passage or puzzle, pages of labelled examples (as many a
    class as CLINC150 has), or the pieces of a person's own (1 where they were not looked at).
    """
    classify = config.task.classify
    if config.task.name in ("documents", "custom"):
        return len(task.days()[-1].documents) if task else 1
    if config.task.name == "squad":
        return config.task.squad.passages_per_day
    if config.task.name == "arc":
        return config.task.arc.puzzles_per_day
    pages = (
        math.ceil(100 * classify.classes_per_day / classify.examples_per_document)
        * classify.pages_per_example
    )
    return config.task.world.people_per_day if config.task.name == "world" else pages


def _tokens(config: Config, task: Task | None) -> int:
    """A longest sequence with its document. With a foreign tokenizer a word is about 1.5 tokens;
    never above max_model_len.
    """
    own, longest = config.task.documents, config.rollouts.engine.get("max_model_len") or math.inf
    if config.task.name == "documents" and config.model.base:
        return int(min(own.piece_tokens + own.max_new_tokens, longest))
    if config.task.name == "custom":
        words = (
            max(len(d.text.split()) for day in task.days() for d in day.documents)
            + task.max_new_tokens
        )
    else:
        words = sum(TASK_TOKENS[config.task.name])
    return int(min(words if config.model.base is None else 1.5 * words, longest))


# ---- checks


def _check_shape(config: Config, shape: Shape) -> None:
    """Rules between the config and the base model."""
    engine, parts, m = config.rollout_engine, _parallel(config), config.model
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
    cached = _rollout_bytes(config, shape)[1]
    if longest and cached is not None and cached < longest:
        need = -(-longest * shape.cached_values * _width(config) // parts)
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


def _check_task(config: Config) -> tuple[Task | None, tuple[str, ...]]:
    """(the task as a run builds it, notes). Looks whether its documents can fit: a word is at least
    a token. A dataset of the hub is left to the run (no task), and noted.
    """
    name, longest = config.task.name, config.rollouts.engine.get("max_model_len")
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


def _notes(config: Config, shape: Shape, actors: tuple[Actor, ...], nights: int) -> tuple[str, ...]:
    """What is allowed but deserves a look."""
    notes = []
    cores, cpus = os.cpu_count() or 1, sum(a.count * a.cpus for a in actors)
    joins = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if config.cluster.backend == "ray" and not joins and cpus > cores:
        notes.append(
            f"{cpus:g} CPUs are asked for and this node has {cores}; join a cluster "
            "with cluster.address"
        )
    mine, ranks = rank_batch(config), config.learners.world_size
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
