"""Rules that involve several keys of a config, checked when it is loaded.

A rule yields one line per violation: key, allowed, got. The first one is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from string import Formatter

from sleep_rl.config.evaluation import CONTEXTS
from sleep_rl.config.schema import Config
from sleep_rl.config.secrets import found_in
from sleep_rl.config.tasks import MOST_DAYS, SECTIONS, WORLD
from sleep_rl.contracts.errors import InputError
from sleep_rl.divergences import DIVERGENCES, jsd

MOST_TEXTS = 1000
"""Of one kind about one unit of a document."""
Rule = Callable[[Config], Iterator[str]]


def check(config: Config) -> None:
    """Raise InputError for the first violated rule."""
    for rule in RULES:
        for mistake in rule(config):
            raise InputError(mistake)


def check_experts(config: Config, nights: int) -> None:
    """Raise InputError if a level needs more experts than it has in a life of `nights` nights."""
    for mistake in _capacity(config, nights):
        raise InputError(mistake)


# ---- rules, in the order in which they are checked


def _no_secrets(config: Config) -> Iterator[str]:
    for name, what in found_in(asdict(config)):
        yield (
            f"{name}: a config must not contain a secret, since it is saved with every run; "
            "SLEEP_RL_JUDGE_KEY, HF_TOKEN and WANDB_API_KEY are read from the environment; got "
            f"{what}"
        )


def _memory(config: Config) -> Iterator[str]:
    model = config.model
    if not all(isinstance(teacher, str) and teacher for teacher in model.teachers):
        yield f"model.teachers: a list of paths or hub names, got {model.teachers}"
    chunks = model.chunks
    are_nights = bool(chunks) and all(type(c) is int and 0 < c <= MOST_DAYS for c in chunks)
    if not are_nights or any(b % a or b <= a for a, b in pairwise(chunks)):
        yield (
            "model.chunks: whole numbers of nights, each a larger multiple of the one before and "
            f"at most {MOST_DAYS}, got {str(chunks)[:100]}"
        )


def _experts(config: Config) -> Iterator[str]:
    """Check the capacity if the config has the number of nights; else see `check_experts`."""
    if config.nights:
        yield from _capacity(config, config.nights)


def _capacity(config: Config, nights: int) -> Iterator[str]:
    sleep = config.sleep
    model = config.model
    if not sleep.expansion or sleep.on_full != "error":
        return
    for level, most in enumerate(config.most_experts(nights), start=1):
        if most > model.experts:
            yield (
                f"model.experts: at least {most}, which level {level} needs until it is reset "
                f"(sleep.reset, model.chunks = {model.chunks}, {nights} nights), or another "
                f"sleep.on_full, got {model.experts}"
            )


def _loss(config: Config) -> Iterator[str]:
    imitation = config.imitation
    objective = config.objective
    prefix = imitation.prefix
    are_shares = len(prefix) == 2 and all(type(share) in (int, float) for share in prefix)
    if not are_shares or not 0 <= prefix[0] <= prefix[1] <= 1:
        yield (
            "imitation.prefix: two shares from 0 to 1, the shortest and the longest, got "
            f"{str(prefix)[:100]}"
        )
    if DIVERGENCES[objective.divergence] is jsd and not 0 < objective.beta < 1:
        yield (
            "objective.beta: inside (0, 1) for jsd (the end points are forward_kl and reverse_kl), "
            f"got {objective.beta}"
        )
    only_student_samples = objective.on_policy == 1 and objective.off_policy_first == 0
    if objective.hard_share and only_student_samples:
        yield (
            "objective.hard_share: 0 without off-policy rows, i.e. with objective.on_policy 1 and "
            f"off_policy_first 0, got {objective.hard_share}"
        )


def _reward(config: Config) -> Iterator[str]:
    reward = config.reward
    if config.gamma > 0 and reward.semantic == "none":
        yield f"reward.gamma: 0 without a reward.semantic model, got {reward.gamma}"
    if (reward.semantic == "custom") != (reward.target is not None):
        yield (
            "reward.target: with reward.semantic custom, and only with it, got "
            f"{reward.target or 'null'} with {reward.semantic}"
        )
    is_judge = reward.semantic == "judge"
    if is_judge and _template_fields(reward.template) != {"student", "teacher"}:
        yield (
            "reward.template: {student} and {teacher} are its fields, both needed, got "
            f"{reward.template!r}"
        )


def _kinds_of_writing(config: Config) -> Iterator[str]:
    for name, count in config.generation.kinds.items():
        is_number = type(count) in (int, float) and 0 <= count <= MOST_TEXTS
        if count is not None and not is_number:
            yield (
                f"generation.kinds.{name}: texts per unit, a number from 0 to {MOST_TEXTS} or "
                f"null, got {count!r:.60}"
            )


def _custom_task(config: Config) -> Iterator[str]:
    task = config.task
    if (task.name == "custom") != (task.custom.target is not None):
        yield (
            "task.custom.target: with task.name custom, and only with it, got "
            f"{task.custom.target or 'null'} with {task.name}"
        )
    if task.name in ("custom", "documents") and config.model.base is None:
        yield (
            f"model.base: a language model is needed for task {task.name}, which has no small "
            "base, got null"
        )
    if config.model.base == WORLD and task.name != "documents":
        yield f"model.base: world with task documents only, got it with {task.name}"


def _keys_of_tasks(config: Config) -> Iterator[str]:
    """Check that keys of some tasks are null with other tasks."""
    task = config.task
    for name, value, fact in (
        ("task.days", task.days, "days"),
        ("task.order_seed", task.order_seed, "in_order"),
        ("task.base_text", task.base_text, "in_order"),
        ("dream.max_tokens", config.dream.max_tokens, "dream_tokens"),
    ):
        tasks = [other for other, section in SECTIONS.items() if getattr(section, fact)]
        if value is not None and task.name not in tasks:
            yield (
                f"{name}: null with task {task.name} (only {', '.join(tasks)} take a value), got "
                f"{value}"
            )


def _stop_strings(config: Config) -> Iterator[str]:
    stop = config.task.stop
    if not all(isinstance(text, str) and text for text in stop):
        yield f"task.stop: a list of strings that are not empty, got {str(stop)[:100]}"
    natural = config.task.name in ("documents", "custom") and not config.own_base
    if stop and not natural:
        yield (
            "task.stop: [] with a task that has a small base of its own, whose texts have a fixed "
            f"form, got {str(stop)[:100]}"
        )


def _evaluation(config: Config) -> Iterator[str]:
    chosen = config.evaluate.contexts
    if any(name not in CONTEXTS for name in chosen) or len(set(chosen)) < len(chosen):
        yield (
            f"evaluate.contexts: some of {', '.join(CONTEXTS)}, each once, got {str(chosen)[:100]}"
        )
    probes = config.evaluate.probes
    if not all(isinstance(path, str) and path.strip() for path in probes):
        yield f"evaluate.probes: a list of jsonl files, got {str(probes)[:100]}"


def _selection(config: Config) -> Iterator[str]:
    dream = config.dream
    kept = dream.keep_top + dream.keep_random
    if kept > dream.dreams_per_task:
        yield (
            "dream.keep_top + dream.keep_random: at most dream.dreams_per_task = "
            f"{dream.dreams_per_task}, got {kept}"
        )
    if kept == 0:
        yield "dream.keep_top + dream.keep_random: at least 1, got 0"


def _dreams(config: Config) -> Iterator[str]:
    """Check the requirements of dreaming on other sections."""
    dream = config.dream
    task = config.task
    learners = config.learners
    if not dream.rounds:
        return
    if task.name in ("classify", "documents"):
        yield f"dream.rounds: 0 with task {task.name}, which has no tau, got {dream.rounds}"
    if task.name == "world" and not task.world.deep:
        yield "task.world.deep: true for dreaming, got false"
    if config.replay.share == 1:
        yield "replay.share: below 1 with dream.rounds, or no dream is learned, got 1"
    if config.objective.alpha == 0:
        yield "objective.alpha: above 0 with dream.rounds, or no dream is learned, got 0"
    if learners.zero_stage == 3 and learners.world_size > 1:
        yield (
            "learners.zero_stage: at most 2 on several ranks with dream.rounds (their numbers of "
            "forward passes differ), got 3"
        )
    if config.critics.gpus > 0 and not config.critic_engine.get("kv_cache_memory_bytes"):
        yield (
            "critics.engine.kv_cache_memory_bytes: a number of bytes where critics have GPUs, or "
            "the engine uses the memory of the copies, got null"
        )


def _workers(config: Config) -> Iterator[str]:
    sleep = config.sleep
    rollouts = config.rollouts
    learners = config.learners
    if sleep.batch < learners.world_size:
        yield (
            f"sleep.batch: at least one sequence per learner rank ({learners.world_size}), "
            f"got {sleep.batch}"
        )
    if learners.gradient_checkpointing and learners.zero_stage == 3 and learners.world_size > 1:
        # ZeRO-3 gathers weights per forward pass; the recomputed ones meet other ranks' gathers
        yield "learners.gradient_checkpointing: false with ZeRO stage 3 on several ranks, got true"
    is_parallel = max(rollouts.gpus, rollouts.tensor_parallel) > 1
    if is_parallel and rollouts.gpus != rollouts.tensor_parallel:
        yield (
            "rollouts.tensor_parallel: as many as rollouts.gpus where either is above 1, got "
            f"{rollouts.tensor_parallel} with {rollouts.gpus:g}"
        )
    if config.cluster.backend != "local":
        return
    if sleep.lag > 0:
        yield (
            "sleep.lag: 0 with cluster.backend local, where all workers take turns, "
            f"got {sleep.lag}"
        )
    if learners.world_size > 1:
        yield f"learners.world_size: 1 with cluster.backend local, got {learners.world_size}"


RULES: tuple[Rule, ...] = (
    _no_secrets,
    _memory,
    _experts,
    _loss,
    _reward,
    _kinds_of_writing,
    _custom_task,
    _keys_of_tasks,
    _stop_strings,
    _evaluation,
    _selection,
    _dreams,
    _workers,
)


def _template_fields(template: str) -> set[str | None]:
    """Return the field names of a format string; empty if it is not one."""
    try:
        return {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        return set()
