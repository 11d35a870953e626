"""Compute the plan of a run before anything starts: actors, memory, bytes of a weight push, steps,
samples, time.
"""

from __future__ import annotations

import math

from sleep_rl.config.schema import Config
from sleep_rl.contracts.roles import Task
from sleep_rl.driver.baselines import registry
from sleep_rl.model.shape import base_shape, local_folder
from sleep_rl.night.plan import Shares
from sleep_rl.plan.actors import actors_of
from sleep_rl.plan.checks import check_shape, check_task, notes_on
from sleep_rl.plan.gpu_fit import check_fit, check_shares
from sleep_rl.plan.night_tokens import night_tokens
from sleep_rl.plan.sizes import (
    bytes_per_parameter,
    critic_bytes,
    expert_bytes,
    is_natural,
    learner_bytes,
    longest_night,
    longest_sequence,
    memory_bytes,
    night_seconds,
    pass_tokens,
    rollout_bytes,
    written_per_day,
)
from sleep_rl.plan.text_probe import check_text
from sleep_rl.plan.types import Plan
from sleep_rl.tasks import plugin


def plan(config: Config) -> Plan:
    """Compute the plan from the config, the base model's shape and the task; start no process.
    Raises InputError for a config that cannot run.
    """
    registry.check(config)
    shape = base_shape(config)
    check_shape(config, shape)
    check_shares(config)
    task, notes = check_task(config)
    checkpoints = [("model.teachers", name) for name in config.model.teachers]
    if config.reward.target:
        plugin.load_class(config.reward.target, "reward.target")
    if config.reward.semantic != "none" and config.reward.model:
        checkpoints.append(("reward.model", config.reward.model))
    for key, name in checkpoints:  # a hub name is left to the run
        local_folder(name, key, config.run.cache)
    natural = is_natural(config, task)
    tokens = longest_sequence(config, task)
    rollout, cached_tokens = rollout_bytes(config, shape)
    s = config.sleep
    rows = Shares.of(config, config.replay.share, config.objective.on_policy)
    written, without_document, completions = _sampled_per_night(config, task, rows)
    work = longest_night(config, tokens, written + without_document + completions)
    if natural and task is not None:
        notes += check_text(config, task, shape)
        work = night_tokens(config, task, rows, without_document, completions)
    actors = actors_of(config)
    nights = len(task.days()) if task else config.nights or 1
    consolidations = tuple(config.schedule(nights))
    steps = sum(consolidation.steps for consolidation in consolidations)
    result = Plan(
        config=config,
        base=shape,
        actors=actors,
        learner=learner_bytes(config, shape, tokens),
        rollout=rollout,
        cached_tokens=cached_tokens,
        critic=critic_bytes(config, shape, rollout) if config.dream.rounds else None,
        push_bytes=expert_bytes(config, shape),
        full_bytes=shape.parameters * bytes_per_parameter(config) + memory_bytes(config, shape),
        tokens=tokens,
        rows=rows,
        written=written,
        without_document=without_document,
        completions=completions,
        pass_tokens=pass_tokens(config, tokens),
        rounds=math.ceil(s.steps / s.steps_per_round),
        work=work,
        seconds=steps / s.steps * night_seconds(config, shape, work),
        nights=nights,
        consolidations=consolidations,
        baseline_steps=registry.planned_steps(config, nights, natural=natural),
        notes=notes + notes_on(config, shape, actors, nights, tokens),
    )
    check_fit(result)
    return result


def _sampled_per_night(config: Config, task: Task | None, rows: Shares) -> tuple[int, int, int]:
    """Return (teacher sequences with a document, without one, student completions)."""
    replay = config.replay
    rehearsal = config.rehearsal
    reading = config.reading
    written = written_per_day(config, task) if replay.share < 1 else 0
    answered = rehearsal.samples if rehearsal.share else 0
    without_document = replay.samples + answered if replay.share > 0 else 0
    # the synthetic documents, and at most one question about each
    without_document += 2 * reading.synthetic_documents if reading.rows and replay.share < 1 else 0
    groups = rows.groups_new + rows.groups_replay
    steps = config.sleep.steps - round(config.objective.off_policy_first * config.sleep.steps)
    return written, without_document, steps * groups * config.imitation.group_size
