"""Bytes, tokens, rows and seconds of a run, computed from a config and the base model's shape.

Bytes and tokens are exact where they follow from shapes; activations and times are estimates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sleep_rl.config.schema import LOGIT_CHUNK, Config, threads_on
from sleep_rl.contracts.roles import Task
from sleep_rl.model.shape import Shape
from sleep_rl.plan.night_tokens import NightTokens, planned_units

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
LEARN_FLOPS = {"small": 60e9, "cpu": 105e9, "gpu": 150e12}  # per thread, per device
SAMPLE_FLOPS = {"small": 18e9, "cpu": 40e9, "gpu": 50e12}
"""Assumed throughput in FLOP/s on a GPU, and on a CPU of the demo's small model and of larger ones
(SmolLM2-135M: 350 tokens learned per second on two threads, 150 written on one).
"""
SMALL_HIDDEN = 512  # hidden units up to which a model counts as small


@dataclass(frozen=True)
class Bytes:
    """Memory of one process, in bytes.

    `activations` is an estimate. `cache` is None where vLLM sizes its KV cache by
    gpu_memory_utilization.
    """

    base: int
    memory: int
    optimizer: int = 0
    activations: int = 0
    cache: int | None = 0

    @property
    def total(self) -> int:
        """Sum of all parts, without a cache of unknown size."""
        return sum(getattr(self, f.name) or 0 for f in fields(self))


def expert_bytes(config: Config, shape: Shape) -> int:
    """Return the bytes of a push of one expert of one level: its router row, A and B in every
    layer with memory, and the states of all slots of the level.
    """
    m = config.model
    d = shape.hidden
    layer = (d + 3 * m.d_low * d) * bytes_per_parameter(config) + m.experts + 1
    return layers_with_memory(config, shape) * layer


def memory_bytes(config: Config, shape: Shape) -> int:
    """Return the bytes of all slots of all levels, over the layers with memory; slot 0 is a level's
    base expert.
    """
    m = config.model
    d = shape.hidden
    slots = config.model.experts + 1
    slot = (d + 3 * m.d_low * d) * bytes_per_parameter(config) + 1
    return m.levels * layers_with_memory(config, shape) * slots * slot


def layers_with_memory(config: Config, shape: Shape) -> int:
    """Return the number of layers with memory."""
    return shape.layers - config.model.first_layer


def learner_bytes(config: Config, shape: Shape, tokens: int) -> Bytes:
    """Return the memory of one rank, for sequences of `tokens` tokens.

    The frozen base counts once, since teacher and student are states of it; one expert is trained
    by AdamW in fp32.
    """
    ranks = config.learners
    width = bytes_per_parameter(config)
    shards = {stage: ranks.world_size if ranks.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    trained = layers_with_memory(config, shape) * shape.hidden * (1 + 3 * config.model.d_low)
    # fp32 master copy and two moments (stage 1), gradient (stage 2), the parameters (stage 3)
    optimizer = int(trained * (12 / shards[1] + width / shards[2] + width / shards[3]))
    saved = pass_tokens(config, tokens) * saved_bytes(config, shape)
    # fp32 of a chunk: logits of teacher and student, their log-softmax, gradients
    logits = 6 * 4 * LOGIT_CHUNK * shape.vocab
    return Bytes(shape.parameters * width, memory_bytes(config, shape), optimizer, saved + logits)


def saved_bytes(config: Config, shape: Shape) -> int:
    """Return the bytes that a pass saves for the backward pass, per token: about 17 values of the
    hidden width (those in fp32 count twice) and 3 of the MLP's in each layer from the lowest with
    memory up; with gradient checkpointing the layers' inputs, and all of this for one layer at a
    time.
    """
    layers = layers_with_memory(config, shape)
    layer = 17 * shape.hidden + 3 * shape.intermediate
    if config.learners.gradient_checkpointing:
        values = layers * shape.hidden + layer
    else:
        values = layers * layer
    return values * bytes_per_parameter(config)


def rollout_bytes(config: Config, shape: Shape) -> tuple[Bytes, int | None]:
    """Return (memory of one engine over all its GPUs, tokens that its KV cache holds).

    The engine has the memory twice, once per named state. The tokens are None where vLLM sizes the
    cache.
    """
    per_token = shape.cached_values * bytes_per_parameter(config)
    per_gpu = config.rollout_engine.get("kv_cache_memory_bytes")
    cache = None if per_gpu is None else per_gpu * config.rollouts.tensor_parallel
    base = shape.parameters * bytes_per_parameter(config)
    size = Bytes(base, 2 * memory_bytes(config, shape), cache=cache)
    return size, None if cache is None else cache // per_token


def critic_bytes(config: Config, shape: Shape, rollout: Bytes) -> Bytes:
    """Return the memory of one critic: an engine with the options of `critics.engine`, the same
    model in torch, and `critics.copies_per_pass` LoRA copies.

    A copy has factors in every projection; factors, gradients and two moments are float32.
    """
    query = shape.heads * shape.head_dim
    kv = shape.kv_heads * shape.head_dim
    widths = (  # inputs and outputs of the seven projections of a layer
        2 * (shape.hidden + query)
        + 2 * (shape.hidden + kv)
        + 3 * (shape.hidden + shape.intermediate)
    )
    factors = shape.layers * widths * config.dream.copies.rank
    copies = config.critics.copies_per_pass * factors * 4 * DTYPE_BYTES["float32"]
    cache = config.critic_engine.get("kv_cache_memory_bytes")
    return Bytes(
        2 * rollout.base, rollout.memory + memory_bytes(config, shape), copies, cache=cache
    )


def longest_night(config: Config, tokens: int, sampled: int) -> NightTokens:
    """Return the tokens of a night in which every sequence has `tokens`; `sampled`: sequences
    sampled in it.
    """
    learned = config.sleep.batch * config.sleep.steps * tokens
    written = sampled * tokens
    return NightTokens(0, written, taught=learned, trained=learned, once=min(learned, written))


def night_seconds(config: Config, shape: Shape, work: NightTokens) -> float:
    """Return the estimated seconds of a night in which training and sampling take turns.

    A forward pass costs 2 FLOPs per parameter and token; the base's weights have no gradient, so a
    backward pass costs 2 as well, and gradient checkpointing adds one more forward pass. Prompts
    are read at the rate of learning, since all their tokens go through the model together. The
    layers below the memory are computed once for each sequence, as the teacher reads it and as the
    student does, and never backward.
    """
    learners = config.learners
    rollouts = config.rollouts
    threads = threads_on(rollouts.cpus)
    learn = learners.world_size * _flops(LEARN_FLOPS, shape, learners.gpus, learners.threads)
    read = rollouts.workers * _flops(LEARN_FLOPS, shape, rollouts.gpus, threads)
    write = rollouts.workers * _flops(SAMPLE_FLOPS, shape, rollouts.gpus, threads)
    student = 6 if learners.gradient_checkpointing else 4
    below = config.model.first_layer * shape.layer_parameters
    above = shape.parameters - below
    learned = (student * work.trained + 2 * work.taught) * above + 4 * work.once * below
    sampled = 2 * shape.parameters * (work.read / read + work.written / write)
    return learned / learn + sampled


def rate_of(gpus: float, shape: Shape) -> str:
    """Return the key of LEARN_FLOPS and SAMPLE_FLOPS for a worker."""
    if gpus:
        return "gpu"
    return "small" if shape.hidden <= SMALL_HIDDEN else "cpu"


def _flops(assumed: dict[str, float], shape: Shape, gpus: float, threads: int) -> float:
    return assumed[rate_of(gpus, shape)] * (gpus or threads)


def bytes_per_parameter(config: Config) -> int:
    """Return the bytes of one parameter in model.dtype."""
    return DTYPE_BYTES[config.model.dtype]


def rank_batch(config: Config) -> int:
    """Return the rows of an optimizer step on the learner rank with the most."""
    return math.ceil(step_rows(config) / config.learners.world_size)


def pass_tokens(config: Config, longest: int) -> int:
    """Return the padded tokens of the largest pass: learners.pass_tokens, or a sequence of
    `longest` tokens alone; fewer where a rank's rows are fewer.
    """
    return min(max(config.learners.pass_tokens, longest), rank_batch(config) * longest)


def step_rows(config: Config) -> int:
    """Return the rows of an optimizer step: sleep.batch, and the reading rows unless all of the
    batch is self-replay.
    """
    return config.sleep.batch + (config.reading.rows if config.replay.share < 1 else 0)


def documents_per_day(config: Config, task: Task | None) -> int:
    """Return the number of documents of a day.

    It is one per person, passage or puzzle, and for task classify the pages of 100 labelled
    examples per class, as in CLINC150. Tasks documents and custom: those of the newest day, 1 if
    the task is not known yet.
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


def is_natural(config: Config, task: Task | None) -> bool:
    """Return whether the task is in natural language. Of the datasets of the hub, which are not
    loaded, only that of task documents can be.
    """
    if task is None:
        return config.task.name == "documents" and not config.own_base
    return not (task.opener or task.marker)


def written_per_day(config: Config, task: Task | None) -> int:
    """Return how many texts the teacher writes about the newest day's documents.

    In natural language those of generation.kinds before any is dropped, else generation.samples per
    document.
    """
    if task is not None and is_natural(config, task):
        return sum(1 for _ in planned_units(config, task))
    return documents_per_day(config, task) * config.generation.samples


def longest_sequence(config: Config, task: Task | None) -> int:
    """Return the tokens of the longest sequence with its document, at most max_model_len.

    With the tokenizer of model.base a word of the task is estimated as 1.5 tokens.
    """
    documents = config.task.documents
    max_model_len = config.rollouts.engine.get("max_model_len") or math.inf
    if config.task.name == "documents" and not config.own_base:
        return int(min(documents.piece_tokens + documents.max_new_tokens, max_model_len))
    text_tokens = config.task.section.text_tokens
    if text_tokens is None:
        words = max(len(d.text.split()) for day in task.days() for d in day.documents)
        words += task.max_new_tokens
    else:
        words = sum(text_tokens)
    return int(min(words if config.own_base else 1.5 * words, max_model_len))
