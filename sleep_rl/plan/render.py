"""A plan as a person reads it: `sleep-rl plan`."""

from __future__ import annotations

import os

from sleep_rl.config.schema import Config
from sleep_rl.driver.baselines import registry
from sleep_rl.plan.gpu_fit import GB, loads, smallest
from sleep_rl.plan.plan import LEARN_FLOPS, SAMPLE_FLOPS, Plan, memory_bytes, rank_batch, step_rows


def render(plan: Plan) -> str:
    """The plan as a table of two columns."""
    c, b, s, m, r = plan.config, plan.base, plan.config.sleep, plan.config.model, plan.rows
    on_gpu = "gpu" if c.learners.gpus else "cpu", "gpu" if c.rollouts.gpus else "cpu"
    rows = [
        (
            "run",
            f"{c.run.name}: task {c.task.name}, {plan.nights} nights -> "
            f"{os.path.join(c.run.dir, c.run.name)}",
        ),
        (
            "base model",
            f"{m.base or c.task.name} ({b.source}): {b.family}, {b.layers} layers of "
            f"{b.hidden}, vocabulary "
            f"{b.vocab}, {_count(b.parameters)} parameters, {m.dtype}",
        ),
        (
            "memory",
            f"{m.levels} level(s) of {m.experts} experts and a base expert, d_low "
            f"{m.d_low}, in each layer: "
            f"{_size(memory_bytes(c, b))}",
        ),
        *((a.role, f"{a.count} x {a.cpus:g} CPU, {a.gpus:g} GPU") for a in plan.actors),
        ("in total", f"{plan.cpus:g} CPUs, {plan.gpus:g} GPUs"),
        (
            "learner rank",
            f"about {_size(plan.learner.total)}: base {_size(plan.learner.base)}, "
            "memory "
            f"{_size(plan.learner.memory)}, new expert with AdamW "
            f"{_size(plan.learner.optimizer)}, "
            f"activations {_size(plan.learner.activations)} (rough)",
        ),
        (
            "rollout engine",
            f"{_size(plan.rollout.total)}: base {_size(plan.rollout.base)}, "
            "memory of two states "
            f"{_size(plan.rollout.memory)}, {_cache_words(plan)}",
        ),
        *(
            [
                (
                    "critic",
                    f"{_size(plan.critic.total)}: base twice {_size(plan.critic.base)}, copies "
                    f"{_size(plan.critic.optimizer)}",
                )
            ]
            if plan.critic
            else []
        ),
        *([("gpu memory", _gpu_words(plan))] if loads(plan) else []),
        (
            "weight push",
            f"{_size(plan.push_bytes)} (one expert) against {_size(plan.full_bytes)} "
            "(everything): "
            f"{plan.push_bytes / plan.full_bytes:.2%}",
        ),
        (
            "a night",
            f"{s.steps} optimizer steps, {plan.rounds} rounds of {s.steps_per_round}, a "
            "push after each"
            + (
                f", a checkpoint every {c.run.checkpoint_steps}"
                if 0 < c.run.checkpoint_steps < s.steps
                else ""
            ),
        ),
        (
            "a step",
            f"{step_rows(c)} sequences = {plan.micro_batches} micro batch(es) of at most "
            f"{min(rank_batch(c), c.learners.micro_batch)} x {c.learners.world_size} "
            "rank(s), up to "
            f"{plan.tokens} tokens each",
        ),
        (
            "rows of a step",
            f"{r.teacher_new} new and {r.teacher_replay} replay by the teacher, "
            f"{r.groups_new} new and "
            f"{r.groups_replay} replay groups of {c.imitation.group_size} by the student, "
            f"{c.reading.rows} reading",
        ),
        (
            "sampled a night",
            f"{plan.written} sequences written with a document, {plan.replayed} "
            "without, "
            f"{plan.completions} student completions",
        ),
        *([("dreams", _dream_words(c))] if c.dream.rounds else []),
        (
            "all nights",
            f"{len(plan.consolidations)} consolidations, {plan.steps} optimizer "
            f"steps{_baseline_words(c, plan.nights)}",
        ),
        (
            "time",
            f"about {_duration(plan.seconds)} for the nights, without start-up, evaluation "
            "and baselines; assumes "
            f"{_rate(LEARN_FLOPS, on_gpu[0])} learning and {_rate(SAMPLE_FLOPS, on_gpu[1])} "
            "sampling",
        ),
        *(("note", note) for note in plan.notes),
    ]
    return "\n".join(f"{name:<16} {text}" for name, text in rows)


def _cache_words(plan: Plan) -> str:
    if plan.rollout.cache is None:
        return "KV cache of what gpu_memory_utilization leaves"
    return f"KV cache {_size(plan.rollout.cache)} ({plan.cached_tokens} tokens)"


def _gpu_words(plan: Plan) -> str:
    there, parts = plan.config.cluster.gpu_gb, []
    for load in loads(plan):
        words = f"{load.who} {_size(load.held)}"
        if load.token and there:
            cache = load.cache(there * GB)
            words += f" and a KV cache of about {_size(cache)} ({cache / load.token / 1000:.0f} thousand tokens)"
        elif load.token:
            words += " and a KV cache"
        parts.append(words)
    least = f"GPUs from {smallest(plan)} GB on" if smallest(plan) else "no GPU that there is"
    return f"on each GPU: {'; '.join(parts)}; fits {f'the {there:g} GB of cluster.gpu_gb' if there else least} (rough)"


def _dream_words(config: Config) -> str:
    d = config.dream
    kept = d.tasks * (d.keep_top + d.keep_random)
    return (
        f"{d.rounds} round(s) a night of up to {d.tasks} tasks x {d.dreams_per_task} dreams, of which "
        f"{d.keep_top} + {d.keep_random} are tried out: "
        f"{kept * (d.copies.seeds + 1)} isolated copies a round; {d.steps} optimizer steps to learn "
        "the rewarded ones"
    )


def _baseline_words(config: Config, nights: int) -> str:
    planned = registry.planned_steps(config, nights)
    return "".join(f", {name} {steps}" for name, steps in planned.items())


def _rate(flops: dict[str, float], device: str) -> str:
    return (
        f"{flops[device] / 1e12:g} TFLOP/s a GPU"
        if device == "gpu"
        else f"{flops[device] / 1e9:g} GFLOP/s a thread"
    )


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
