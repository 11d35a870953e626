"""Class, arguments, resources and environment of a run's workers, per role."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from actors.environment import cpu_environment
from cluster.runtime.backend import Backend
from cluster.runtime.handle import Handle
from cluster.runtime.resources import ResourceRequest
from sleep_rl.config.schema import Config, threads_on
from sleep_rl.model.packaged_base import resolve
from sleep_rl.plan.actors import actors_of


@dataclass(frozen=True)
class CrewSpec:
    """The specification of a crew.

    `checkpoint`: the expanded checkpoint that learners and rollouts load; `base`: its base model,
    whose tokenizer and weights the reward workers read; `probe_T`: the probe prompt of each push;
    `teachers`: sleep checkpoints of model.teachers; `learners`: False for rollout workers only, as
    an evaluation needs; `shared_ids`: number of ids that student and teachers all have.
    """

    config: Config
    checkpoint: str
    base: str
    probe_T: tuple[int, ...] = ()
    teachers: tuple[str, ...] = ()
    learners: bool = True
    shared_ids: int = 0

    def requests(self, rollouts: int) -> list[ResourceRequest]:
        """Return the resource requests of all workers, with `rollouts` rollout workers."""
        config = replace(self.config, rollouts=replace(self.config.rollouts, workers=rollouts))
        return [
            ResourceRequest(actor.role, actor.count, actor.cpus, actor.gpus)
            for actor in actors_of(config)
            if self.learners or actor.role == "rollout"
        ]


@dataclass(frozen=True)
class CrewHandles:
    """The workers of a crew by role; a role without workers is an empty list."""

    rollouts: list[Handle]
    ranks: list[Handle] = field(default_factory=list)
    edit_distance: list[Handle] = field(default_factory=list)
    semantic: list[Handle] = field(default_factory=list)
    critics: list[Handle] = field(default_factory=list)

    def all(self) -> list[Handle]:
        return [
            *self.rollouts,
            *self.ranks,
            *self.edit_distance,
            *self.semantic,
            *self.critics,
        ]


def spawn_crew(backend: Backend, spec: CrewSpec) -> CrewHandles:
    """Start every worker and wait until all are constructed."""
    rollouts = [
        spawn_rollout(backend, spec.config, spec.checkpoint, f"rollout-{i}")
        for i in range(spec.config.rollouts.workers)
    ]
    handles = CrewHandles(rollouts)
    if spec.learners:
        handles = CrewHandles(
            rollouts,
            _spawn_learners(backend, spec),
            _spawn_edit_distance(backend, spec.config),
            _spawn_semantic(backend, spec.config, spec.base),
            _spawn_critics(backend, spec) if spec.config.dream.rounds else [],
        )
    backend.ready(handles.all())
    return handles


def spawn_rollout(backend: Backend, config: Config, checkpoint: str, name: str) -> Handle:
    """Start one rollout worker that samples from `checkpoint`."""
    rollouts = config.rollouts
    engine = config.rollout_engine
    if config.task.stop:  # vLLM searches for strings in the text, so it needs the tokenizer
        engine["skip_tokenizer_init"] = False
    kwargs = {
        "checkpoint": checkpoint,
        "dtype": config.model.dtype,
        "engine": engine,
        "seed": config.run.seed,
        "tensor_parallel": rollouts.tensor_parallel,
        "probe_tolerance": config.probe_tolerance,
    }
    return backend.spawn(
        "actors.rollout:RolloutWorker",
        kwargs,
        name=name,
        cpus=rollouts.cpus,
        gpus=rollouts.gpus,
        env={} if rollouts.gpus else cpu_environment(threads_on(rollouts.cpus)),
    )


def _spawn_critics(backend: Backend, spec: CrewSpec) -> list[Handle]:
    config = spec.config
    critics = config.critics
    kwargs = {
        "checkpoint": spec.checkpoint,
        "dtype": config.model.dtype,
        "engine": config.critic_engine,
        "seed": config.run.seed,
        "rank": config.dream.copies.rank,
        "alpha": config.dream.copies.alpha,
        "copies_per_pass": critics.copies_per_pass,
        "device": "cuda" if critics.gpus else "cpu",
        "probe_tolerance": config.probe_tolerance,
    }
    return [
        backend.spawn(
            "actors.critic:CriticWorker",
            kwargs,
            name=f"critic-{i}",
            gpus=critics.gpus,
            env={} if critics.gpus else cpu_environment(1),
        )
        for i in range(critics.workers)
    ]


def _spawn_learners(backend: Backend, spec: CrewSpec) -> list[Handle]:
    learners = spec.config.learners
    kwargs = {
        "checkpoint": spec.checkpoint,
        "config": spec.config,
        "probe_T": spec.probe_T,
        "base": spec.base,
    }
    env = {
        "OMP_NUM_THREADS": str(learners.threads),
        "DS_ACCELERATOR": "cuda" if learners.gpus else "cpu",
        # OpenMP threads spin for about 30 us before they sleep: without spinning every small
        # operation waits for a wake-up, and longer spinning takes cores from the rollouts.
        "GOMP_SPINCOUNT": "30000",
    }
    return backend.spawn_ranks(
        "learners.worker:LearnerWorker",
        kwargs,
        name="learner",
        world_size=learners.world_size,
        cpus=learners.cpus,
        gpus=learners.gpus,
        env=env,
    )


def _spawn_edit_distance(backend: Backend, config: Config) -> list[Handle]:
    cls = "actors.edit_distance_reward:LevenshteinReward"
    return _spawn_rewards(backend, config, "reward", cls, {"z0": config.reward.z0}, gpus=0.0)


def _spawn_semantic(backend: Backend, config: Config, base: str) -> list[Handle]:
    """Start the workers of reward.semantic; return [] for "none"."""
    reward = config.reward
    model = resolve(reward.model, config.run.cache) if reward.model else base
    if reward.semantic == "none":
        return []
    kwargs: dict[str, Any] = {"tokenizer_path": base}
    if reward.semantic == "custom":
        cls = "actors.custom_reward:CustomReward"
        kwargs |= {"target": reward.target, "options": dict(reward.options)}
    elif reward.semantic == "encoder":
        cls = "actors.semantic_reward:EncoderReward"
        kwargs |= {
            "model": model,
            "threshold": reward.threshold,
            "device": "cuda" if reward.gpus else "cpu",
        }
    else:
        cls = "actors.semantic_reward:JudgeReward"
        kwargs |= {
            "model": model,
            "template": reward.template,
            "dtype": config.model.dtype,
            "engine": config.judge_engine,
        }
    return _spawn_rewards(backend, config, "semantic", cls, kwargs, reward.gpus)


def _spawn_rewards(
    backend: Backend, config: Config, role: str, cls: str, kwargs: dict[str, Any], gpus: float
) -> list[Handle]:
    env = {} if gpus else cpu_environment(1)
    return [
        backend.spawn(cls, kwargs, name=f"{role}-{i}", cpus=0.0, gpus=gpus, env=env)
        for i in range(config.reward.workers)
    ]
