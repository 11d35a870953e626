"""The worker processes of a run."""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.config.schema import Config


@dataclass(frozen=True)
class Actor:
    """The workers of one role: `count` processes with `cpus` and `gpus` each."""

    role: str
    count: int
    cpus: float
    gpus: float


def actors_of(config: Config) -> tuple[Actor, ...]:
    """Return every role of a run with the number of its workers, and CPUs and GPUs of each."""
    rollouts = config.rollouts
    learners = config.learners
    reward = config.reward
    critics = config.critics
    teachers = len(config.model.teachers)
    workers = [Actor("rollout", rollouts.workers, rollouts.cpus, rollouts.gpus)]
    if teachers:  # in night 0 only
        workers.append(Actor("peer", teachers, rollouts.cpus, rollouts.gpus))
    workers.append(Actor("learner", learners.world_size, learners.cpus, learners.gpus))
    # reward workers and critics reserve no CPU: they share the cores of their node
    workers.append(Actor("reward", reward.workers, 0.0, 0.0))
    if reward.semantic != "none":
        workers.append(Actor("semantic", reward.workers, 0.0, reward.gpus))
    if config.dream.rounds:
        workers.append(Actor("critic", critics.workers, 0.0, critics.gpus))
    return tuple(workers)
