"""Bytes, tokens, rows and seconds of a run, computed from a config and the base model's shape.

Bytes and tokens are exact where they follow from shapes; activations and times are rough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sleep_rl.config.schema import Config
from sleep_rl.contracts.roles import Task
from sleep_rl.model.shape import Shape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
TASK_TOKENS = {
    "world": (34, 16),
    "documents": (34, 16),
    "classify": (134, 48),
    "squad": (450, 64),
    "arc": (4000, 1024),
}
"""Tokens, in the task's own vocabulary, of the longest document and of the longest text that is
written about it.
"""
LEARN_FLOPS = {"cpu": 60e9, "gpu": 150e12}  # per thread, per device
SAMPLE_FLOPS = {"cpu": 18e9, "gpu": 50e12}
"""Assumed throughput in FLOP/s. The CPU figures are those of the demo's small model; large models
reach more.
"""


@dataclass(frozen=True)
class Bytes:
    """Memory of one process, in bytes. `activations` is rough; `cache` is None where vLLM takes
    what its GPU has left.
    """

    base: int
    memory: int
    optimizer: int = 0
    activations: int = 0
    cache: int | None = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) or 0 for f in fields(self))


def expert_bytes(config: Config, shape: Shape) -> int:
    """Return the size of a push of one expert of one level: router row, A and B in every layer, and
    the states of the slots.
    """
    m = config.model
    d = shape.hidden
    return shape.layers * ((d + 3 * m.d_low * d) * bytes_per_parameter(config) + m.experts + 1)


def memory_bytes(config: Config, shape: Shape) -> int:
    """Return the size of all slots of all levels and layers; slot 0 is a level's base expert."""
    m = config.model
    d = shape.hidden
    slots = config.model.experts + 1
    slot = (d + 3 * m.d_low * d) * bytes_per_parameter(config) + 1
    return m.levels * shape.layers * slots * slot


def learner_bytes(config: Config, shape: Shape, tokens: int) -> Bytes:
    """Return the sizes of one rank: the frozen base once, since teacher and student are states of
    it, and the plastic expert with AdamW in fp32.
    """
    ranks = config.learners
    width = bytes_per_parameter(config)
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


def rollout_bytes(config: Config, shape: Shape) -> tuple[Bytes, int | None]:
    """Return the sizes of one engine, over all its GPUs, and how many tokens its KV cache holds.

    The engine has the memory twice: once per named state.
    """
    per_token = shape.cached_values * bytes_per_parameter(config)
    parts = config.rollouts.tensor_parallel
    given = config.rollout_engine.get("kv_cache_memory_bytes")  # vLLM counts it per GPU
    cache = None if given is None else given * parts
    base = shape.parameters * bytes_per_parameter(config)
    size = Bytes(base, 2 * memory_bytes(config, shape), cache=cache)
    return size, None if cache is None else cache // per_token


def critic_bytes(config: Config, shape: Shape, rollout: Bytes) -> Bytes:
    """Return the sizes of a critic: an engine with the options of `critics.engine`, the same model
    in torch, and `critics.copies_per_pass` LoRA copies, whose factors, gradients and two moments
    are float32, in every projection.
    """
    inside = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
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


def night_seconds(config: Config, shape: Shape, tokens: int, sampled: int) -> float:
    """Return the seconds of a night in which learning and sampling take turns.

    Forward costs 2 FLOPs per parameter and token; the base's weights get no gradient, so backward
    costs 2 as well: teacher, student and backward are 6.
    """
    learners = config.learners
    rollouts = config.rollouts
    learn = learners.world_size * _flops(LEARN_FLOPS, learners.gpus, learners.threads)
    sample = rollouts.workers * _flops(SAMPLE_FLOPS, rollouts.gpus, rollouts.threads)
    learned = config.sleep.batch * config.sleep.steps
    return shape.parameters * tokens * (6 * learned / learn + 2 * sampled / sample)


def _flops(assumed: dict[str, float], gpus: float, threads: int) -> float:
    return assumed["gpu"] * gpus if gpus else assumed["cpu"] * threads


def bytes_per_parameter(config: Config) -> int:
    """Return the bytes of one parameter."""
    return DTYPE_BYTES[config.model.dtype]


def rank_batch(config: Config) -> int:
    """Return the rows of an optimizer step per learner rank."""
    return math.ceil(step_rows(config) / config.learners.world_size)


def step_rows(config: Config) -> int:
    """Return the rows of an optimizer step: the batch, and the reading rows where documents are
    read.
    """
    return config.sleep.batch + (config.reading.rows if config.replay.share < 1 else 0)


def documents_per_day(config: Config, task: Task | None) -> int:
    """Return the documents of a day: one per person, passage or puzzle, pages of labelled examples
    (100 per class, as CLINC150 has), or the pieces of a person's own (1 if unknown).
    """
    if config.task.name in ("documents", "custom"):
        return len(task.days()[-1].documents) if task else 1
    if config.task.name == "world":
        return config.task.world.people_per_day
    if config.task.name == "squad":
        return config.task.squad.passages_per_day
    if config.task.name == "arc":
        return config.task.arc.puzzles_per_day
    classify = config.task.classify
    pages = math.ceil(100 * classify.classes_per_day / classify.examples_per_document)
    return pages * classify.pages_per_example


def longest_sequence(config: Config, task: Task | None) -> int:
    """Return the tokens of the longest sequence with its document, at most max_model_len. In the
    tokenizer of a model from elsewhere a word is about 1.5 tokens.
    """
    documents = config.task.documents
    longest = config.rollouts.engine.get("max_model_len") or math.inf
    if config.task.name == "documents" and config.model.base:
        return int(min(documents.piece_tokens + documents.max_new_tokens, longest))
    if config.task.name == "custom":
        words = max(len(d.text.split()) for day in task.days() for d in day.documents)
        words += task.max_new_tokens
    else:
        words = sum(TASK_TOKENS[config.task.name])
    return int(min(words if config.model.base is None else 1.5 * words, longest))
