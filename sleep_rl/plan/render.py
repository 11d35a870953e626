"""The text of a plan: `sleep-rl plan`."""

from __future__ import annotations

import os

from sleep_rl.config.schema import Config
from sleep_rl.night.plan import Shares, unrehearsed_share
from sleep_rl.plan.gpu_fit import GB, gpu_loads, smallest_gpu_gb
from sleep_rl.plan.sizes import (
    LEARN_FLOPS,
    SAMPLE_FLOPS,
    memory_bytes,
    rate_of,
    step_rows,
)
from sleep_rl.plan.types import Plan


def render(plan: Plan) -> str:
    """Return the plan as a table of two columns."""
    rows = [*_model_rows(plan), *_worker_rows(plan), *_night_rows(plan)]
    rows += [("note", note) for note in plan.notes]
    return "\n".join(f"{name:<16} {text}" for name, text in rows)


Rows = list[tuple[str, str]]


def _model_rows(plan: Plan) -> Rows:
    config = plan.config
    base = plan.base
    model = config.model
    folder = os.path.join(config.run.dir, config.run.name)
    return [
        ("run", f"{config.run.name}: task {config.task.name}, {plan.nights} nights -> {folder}"),
        (
            "base model",
            f"{model.base or config.task.name} ({base.source}): {base.family}, {base.layers} "
            f"layers of {base.hidden}, vocabulary {base.vocab}, {_count(base.parameters)} "
            f"parameters, {model.dtype}",
        ),
        (
            "memory",
            f"{model.levels} level(s) of {model.experts} experts and a base expert, d_low "
            f"{model.d_low}, in {_layers(model.first_layer, base.layers)}: "
            f"{_size(memory_bytes(config, base))}",
        ),
    ]


def _layers(first: int, layers: int) -> str:
    return f"layers {first} to {layers - 1}" if first else "each layer"


def _worker_rows(plan: Plan) -> Rows:
    learner = plan.learner
    rollout = plan.rollout
    rows = [
        (actor.role, f"{actor.count} x {actor.cpus:g} CPU, {actor.gpus:g} GPU")
        for actor in plan.actors
    ]
    rows += [
        ("total", f"{plan.cpus:g} CPUs, {plan.gpus:g} GPUs"),
        (
            "learner rank",
            f"about {_size(learner.total)}: base {_size(learner.base)}, memory "
            f"{_size(learner.memory)}, new expert with AdamW {_size(learner.optimizer)}, "
            f"activations {_size(learner.activations)} (rough)",
        ),
        (
            "rollout engine",
            f"{_size(rollout.total)}: base {_size(rollout.base)}, memory of two states "
            f"{_size(rollout.memory)}, {_cache_words(plan)}",
        ),
    ]
    if plan.critic:
        critic = plan.critic
        copies = _size(critic.optimizer)
        rows.append(
            ("critic", f"{_size(critic.total)}: base twice {_size(critic.base)}, copies {copies}")
        )
    if gpu_loads(plan):
        rows.append(("gpu memory", _gpu_words(plan)))
    rows.append(
        (
            "weight push",
            f"{_size(plan.push_bytes)} (one expert) of {_size(plan.full_bytes)} (all weights): "
            f"{plan.push_bytes / plan.full_bytes:.2%}",
        )
    )
    return rows


def _night_rows(plan: Plan) -> Rows:
    config = plan.config
    sleep = config.sleep
    rows_of_step = plan.rows
    every = config.run.checkpoint_steps
    checkpoints = ", a checkpoint before the first step" if every else ""
    if 0 < every < sleep.steps:
        checkpoints += f" and every {every}"
    learning = _rate(LEARN_FLOPS, rate_of(config.learners.gpus, plan.base))
    sampling = _rate(SAMPLE_FLOPS, rate_of(config.rollouts.gpus, plan.base))
    rows = [
        (
            "a night",
            f"{sleep.steps} optimizer steps, {plan.rounds} rounds of {sleep.steps_per_round}, a "
            f"push after each{checkpoints}",
        ),
        (
            "a step",
            f"{step_rows(config)} sequences of up to {plan.tokens} tokens on "
            f"{config.learners.world_size} rank(s), in passes of at most {plan.pass_tokens} tokens",
        ),
        (
            "rows of a step",
            f"teacher sequences: {rows_of_step.teacher_new} new and {rows_of_step.teacher_replay} "
            f"replay{_first_night(config)}; student groups of {config.imitation.group_size}: "
            f"{rows_of_step.groups_new} new and {rows_of_step.groups_replay} replay; "
            f"{config.reading.rows} reading",
        ),
        (
            "samples a night",
            f"{plan.written} teacher sequences with a document, {plan.without_document} without, "
            f"{plan.completions} student completions",
        ),
    ]
    if config.dream.rounds:
        rows.append(("dreams", _dream_words(config)))
    rows += [
        (
            "all nights",
            f"{len(plan.consolidations)} consolidations, {plan.steps} optimizer "
            f"steps{_baseline_words(plan)}",
        ),
        (
            "time",
            f"about {_duration(plan.seconds)} for the nights, without start-up, evaluation and "
            f"baselines; assumes {learning} learning and {sampling} sampling",
        ),
    ]
    return rows


def _first_night(config: Config) -> str:
    """Return the teacher sequences of a night without rehearsed ones, if they are others."""
    share = unrehearsed_share(config, config.replay.share)
    rows = Shares.of(config, share, config.objective.on_policy)
    if share == config.replay.share:
        return ""
    return f" (while nothing can be rehearsed: {rows.teacher_new} and {rows.teacher_replay})"


def _cache_words(plan: Plan) -> str:
    if plan.rollout.cache is None:
        return "KV cache in the rest of gpu_memory_utilization"
    return f"KV cache {_size(plan.rollout.cache)} ({plan.cached_tokens} tokens)"


def _gpu_words(plan: Plan) -> str:
    gpu_gb = plan.config.cluster.gpu_gb
    parts = []
    for load in gpu_loads(plan):
        words = f"{load.roles} {_size(load.fixed_bytes)}"
        if load.token_bytes and gpu_gb:
            cache = load.cache_bytes(gpu_gb * GB)
            thousands = cache / load.token_bytes / 1000
            words += f" and a KV cache of about {_size(cache)} ({thousands:.0f} thousand tokens)"
        elif load.token_bytes:
            words += " and a KV cache"
        parts.append(words)
    smallest = smallest_gpu_gb(plan)
    if gpu_gb:
        fits = f"fits the {gpu_gb:g} GB of cluster.gpu_gb"
    elif smallest:
        fits = f"fits a GPU of {smallest} GB"
    else:
        fits = "does not fit any current GPU"
    return f"per GPU: {'; '.join(parts)}; {fits} (rough)"


def _dream_words(config: Config) -> str:
    dream = config.dream
    kept = dream.tasks * (dream.keep_top + dream.keep_random)
    return (
        f"{dream.rounds} round(s) a night of up to {dream.tasks} tasks x {dream.dreams_per_task} "
        f"dreams, of which {dream.keep_top} + {dream.keep_random} are kept for trials: "
        f"{kept * (dream.copies.seeds + 1)} isolated copies a round; {dream.steps} optimizer steps "
        "on the rewarded ones"
    )


def _baseline_words(plan: Plan) -> str:
    return "".join(f", {name} {steps}" for name, steps in plan.baseline_steps.items())


def _rate(flops: dict[str, float], device: str) -> str:
    if device == "gpu":
        return f"{flops[device] / 1e12:g} TFLOP/s a GPU"
    return f"{flops[device] / 1e9:g} GFLOP/s a thread"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _count(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("min", 60), ("h", 3600)):
        if seconds < 100 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400:.2g} days"
