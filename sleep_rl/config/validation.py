"""Rules over several keys of a config, checked once when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from string import Formatter

from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import found_in
from sleep_rl.config.tasks import MOST_DAYS
from sleep_rl.contracts.errors import InputError


def check(config: Config) -> None:
    """Rules over several keys. Raises InputError with one line: what, allowed, got, where."""
    s, m, d = config.sleep, config.model, config.dream
    for name, what in found_in(asdict(config)):
        raise InputError(
            f"{name}: no secret stands in a config, since it is written down with "
            "every run; SLEEP_RL_JUDGE_KEY, "
            f"HF_TOKEN and WANDB_API_KEY are read from the environment; got {what}"
        )

    def refuse(broken: bool, what: str) -> None:
        if broken:
            raise InputError(what)

    refuse(
        not all(isinstance(t, str) and t for t in m.teachers),
        f"model.teachers: a list of paths or hub names, got {m.teachers}",
    )
    whole = all(type(c) is int and 0 < c <= MOST_DAYS for c in m.chunks) and m.chunks
    refuse(
        not whole or any(b % a or b <= a for a, b in zip(m.chunks, m.chunks[1:])),
        "model.chunks: whole numbers of nights, each a larger multiple of the one before and "
        f"at most {MOST_DAYS}, got "
        f"{str(m.chunks)[:100]}",
    )
    if config.nights:
        check_experts(config, config.nights)
    refuse(
        config.imitation.prefix_min > config.imitation.prefix_max,
        f"imitation.prefix_min: at most imitation.prefix_max = {config.imitation.prefix_max}, got {config.imitation.prefix_min}",
    )
    refuse(
        config.objective.divergence == "jsd" and not 0 < config.objective.beta < 1,
        "objective.beta: inside (0, 1) for jsd (the end points are forward_kl and reverse_kl), "
        f"got {config.objective.beta}",
    )
    refuse(
        config.gamma > 0 and config.reward.semantic == "none",
        f"reward.gamma: 0 without a reward.semantic model, got {config.reward.gamma}",
    )
    refuse(
        (config.reward.semantic == "custom") != (config.reward.target is not None),
        "reward.target: with reward.semantic custom, and only with it, got "
        f"{config.reward.target or 'null'} with "
        f"{config.reward.semantic}",
    )
    refuse(
        (config.task.name == "custom") != (config.task.custom.target is not None),
        "task.custom.target: with task.name custom, and only with it, got "
        f"{config.task.custom.target or 'null'} with "
        f"{config.task.name}",
    )
    refuse(
        config.task.name == "custom" and m.base is None,
        "model.base: a language model is needed for task custom, which has no small base, got null",
    )
    refuse(
        config.reward.semantic == "judge"
        and _fields(config.reward.template) != {"student", "teacher"},
        f"reward.template: {{student}} and {{teacher}} are its fields, both needed, got "
        f"{config.reward.template!r}",
    )
    kept = d.keep_top + d.keep_random
    refuse(
        kept > d.dreams_per_task,
        f"dream.keep_top + dream.keep_random: at most dream.dreams_per_task = {d.dreams_per_task}, got {kept}",
    )
    refuse(kept == 0, "dream.keep_top + dream.keep_random: at least 1, got 0")
    if d.rounds:
        _check_dreams(config, refuse)
    refuse(
        s.batch < config.learners.world_size,
        f"sleep.batch: at least one sequence per learner rank ({config.learners.world_size}), "
        f"got {s.batch}",
    )
    r = config.rollouts
    refuse(
        r.gpus != r.tensor_parallel and max(r.gpus, r.tensor_parallel) > 1,
        "rollouts.tensor_parallel: as many as rollouts.gpus where either is above 1, got "
        f"{r.tensor_parallel} with {r.gpus:g}",
    )
    refuse(
        s.lag > 0 and config.cluster.backend == "local",
        f"sleep.lag: 0 with cluster.backend local, where all workers take turns, got {s.lag}",
    )
    refuse(
        config.learners.world_size > 1 and config.cluster.backend == "local",
        f"learners.world_size: 1 with cluster.backend local, got {config.learners.world_size}",
    )


def check_experts(config: Config, nights: int) -> None:
    """Raise InputError where a level takes in more experts than it has in a life of `nights`."""
    sleep, model = config.sleep, config.model
    if not sleep.expansion or sleep.on_full != "error":
        return
    for level, most in enumerate(config.most_experts(nights), start=1):
        if most > model.experts:
            raise InputError(
                f"model.experts: level {level} takes in {most} experts until it is reset "
                f"(sleep.reset, model.chunks = {model.chunks}, {nights} nights), or choose another "
                f"sleep.on_full; got {model.experts}"
            )


def _check_dreams(config: Config, refuse: Callable[[bool, str], None]) -> None:
    """What dreaming needs of the rest."""
    d, task, ranks = config.dream, config.task.name, config.learners
    refuse(
        task in ("classify", "documents"),
        f"dream.rounds: 0 with task {task}, which has no tau, got {d.rounds}",
    )
    refuse(
        task == "world" and not config.task.world.deep,
        "task.world.deep: true for dreaming, got false",
    )
    refuse(d.replay_share == 1, "dream.replay_share: below 1, or no dream is learned, got 1")
    refuse(
        config.objective.alpha == 0,
        "objective.alpha: above 0 with dream.rounds, or no dream is learned, got 0",
    )
    refuse(
        ranks.zero_stage == 3 and ranks.world_size > 1,
        "learners.zero_stage: at most 2 on several ranks with dream.rounds (their passes "
        "differ in number), got 3",
    )
    engine = config.critic_engine
    refuse(
        config.critics.gpus > 0 and not engine.get("kv_cache_memory_bytes"),
        "critics.engine.kv_cache_memory_bytes: a number of bytes where critics have GPUs, or "
        "their engine takes what "
        "their copies need, got null",
    )


def _fields(template: str) -> set[str | None]:
    """Names of the fields of a format string; empty when it is none."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        return set()
