"""The crew of a run: which workers there are, what they ask for, and what the driver calls on
them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from actors.environment import cpu_environment
from cluster.runtime.pool import Pool, RewardPool, RolloutPool
from cluster.runtime.ray_backend import (
    Backend,
    Handle,
    ResourceRequest,
    WorkerDied,
    WorkerLate,
    wait_all,
)
from cluster.runtime.restarts import Restarts
from cluster.scale import Scaler
from cluster.weights import WeightStore
from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import (
    STUDENT,
    TEACHER,
    Metrics,
    Pair,
    Request,
    Sample,
    Sampling,
    Trial,
    other,
)
from sleep_rl.contracts.roles import Critic, Learner, Rollout
from sleep_rl.journal.journal import Journal
from sleep_rl.journal.text import clock
from sleep_rl.plan.plan import actors_of
from sleep_rl.rewards import mixture

# of copies that a critic tries out in one call, training one while it asks another; they share a
# deadline
STACKS = 4
# with rollouts ahead of the learner: a push waits no longer for samples that are under way
SLICE_S = 0.25
CHECKPOINT = "base"  # the state that the rollout workers' own checkpoint holds, as version 0


class Ranks:
    """The learner group behind the methods of contracts.Learner: every rank gets each call, rank 0
    answers.
    """

    def __init__(self, handles: list[Handle], timeout_s: float):
        self._handles, self._timeout_s = handles, timeout_s

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(Learner, name)  # an unknown name fails here, and not in a worker

        def call(*args: Any, **kwargs: Any) -> Any:
            pendings = [handle.start(method, *args, **kwargs) for handle in self._handles]
            return wait_all(pendings, self._timeout_s, f"learners: {name}")[0]

        return call


class WorkerCrew:
    """`contracts.Crew` on a backend: rollout, reward and (unless `learners` is False) learner
    workers.
    """

    def __init__(
        self,
        backend: Backend,
        config: Config,
        journal: Journal,
        *,
        checkpoint: str,
        base: str,
        probe_T: tuple[int, ...] = (),
        learners: bool = True,
        restarts: Restarts | None = None,
        wanted: Callable[[], int | None] = lambda: None,
        teachers: list[str] | None = None,
        patient: bool = False,
    ):
        """`teachers`: sleep checkpoints of model.teachers. `patient`: a cluster that has too little
        may get more in time; it held these workers before.
        """
        self._teachers, self._others = teachers or [], {}
        self._backend, self._config, self._journal, self.version = backend, config, journal, 0
        self._reviving = threading.Lock()
        self._restarts = restarts or Restarts(config.cluster.restarts, journal)

        def check(count: int) -> None:
            scaled = replace(config, rollouts=replace(config.rollouts, workers=count))
            backend.preflight(
                [
                    ResourceRequest(actor.role, actor.count, actor.cpus, actor.gpus)
                    for actor in actors_of(scaled)
                    if learners or actor.role == "rollout"
                ]
            )

        _until(
            lambda: check(config.rollouts.workers),
            backend,
            backend.start_timeout_s if patient else config.cluster.wait_for_nodes_s,
        )
        handles = [
            _rollout(backend, config, checkpoint, f"rollout-{i}")
            for i in range(config.rollouts.workers)
        ]
        ranks, literal, semantic = [], [], []
        if learners:
            ranks = _learners(backend, config, checkpoint, base, probe_T)
            literal = _rewards(
                backend,
                config,
                "reward",
                "actors.edit_distance_reward:LevenshteinReward",
                {"z0": config.reward.z0},
                gpus=0.0,
            )
            semantic = _semantic(backend, config, base)
        critics = _critics(backend, config, checkpoint) if learners and config.dream.rounds else []
        backend.ready(handles + ranks + literal + semantic + critics)
        self.rollouts = RolloutPool(
            handles, config.cluster.call_timeout_s, SLICE_S if config.sleep.lag else None
        )
        self.store = WeightStore(backend, self.rollouts)
        self._critics = Pool("critics", critics, config.cluster.call_timeout_s)
        self._drafts = WeightStore(backend, self._critics)  # what copies are made of
        self._wanted = wanted
        self._scaler = Scaler(
            backend,
            self.rollouts,
            self.store,
            journal,
            lambda i: _rollout(backend, config, checkpoint, f"rollout-{i}"),
            check,
        )
        self.learn: Learner = Ranks(ranks, config.cluster.call_timeout_s)
        self._has_learners = bool(ranks)
        spend, limit_s = self._restarts.spend, config.reward.timeout_s
        self._literal = RewardPool(literal, limit_s, spend)
        self._semantic = RewardPool(semantic, limit_s, spend) if semantic else None

    def push(self, name: str, view: str) -> None:
        """Exports the learner's `view`, as a delta against what the workers have, and waits until
        all verified it.
        """
        self.push_async(name, view)()

    def push_async(self, name: str, view: str) -> Callable[[], None]:
        """Exports and publishes; the returned call delivers. See contracts.Crew."""
        with self._reviving:
            self._scaler.step(self._wanted())
        self.version += 1
        weights = self.learn.export(name, self.version, self.store.have(name), view)
        ref, version = self.store.publish(weights), weights.version

        def deliver() -> None:
            try:
                self.store.deliver(name, version, ref)
            except (WorkerDied, WorkerLate):
                self._revive()
                self.store.confirm(name, version)
            self._journal.log(
                "push",
                name=name,
                version=version,
                **{key.removeprefix("push/"): value for key, value in self.store.metrics.items()},
            )

        return deliver

    def resume(self, snapshot: str, version: int) -> None:
        """Brings learners and rollout workers to where a checkpoint was written, as its last
        push.
        """
        self.learn.load_checkpoint(snapshot)
        self.version = version
        self.store.push(
            self.learn.export(TEACHER, max(version, 1), self.store.have(TEACHER), TEACHER)
        )

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """See contracts.Crew."""
        self.learn.restore_progress(path, step, steps)
        self.store.push(self.learn.export(STUDENT, self.version, self.store.have(STUDENT), STUDENT))

    def sample(self, requests_N: list[Request], name: str, how: Sampling) -> list[Sample | Failure]:
        """Samples from the current version of `name`, spread over the workers, in order."""
        if name in self._others:
            pool = self._others[name]
            return pool.sample(lambda: self._restart(pool), requests_N, CHECKPOINT, 0, how)
        version = 0 if name == CHECKPOINT else self.store.current(name)
        return self.rollouts.sample(self._revive, requests_N, name, version, how)

    def start_teachers(self) -> None:
        """Starts one rollout worker per model of model.teachers, and lets the learners load it."""
        self.learn.load_teachers(self._teachers)
        names = [other(k) for k in range(1, len(self._teachers) + 1)]
        handles = [
            _rollout(self._backend, self._config, path, name)
            for name, path in zip(names, self._teachers, strict=True)
        ]
        self._backend.ready(handles)
        self._others = {
            name: RolloutPool([handle], self._config.cluster.call_timeout_s)
            for name, handle in zip(names, handles, strict=True)
        }

    def stop_teachers(self) -> None:
        """Ends them."""
        for pool in self._others.values():
            with suppress(WorkerDied, WorkerLate):
                pool.all(Rollout.close)
            for handle in pool.workers:
                handle.kill()
        self._others = {}
        self.learn.unload_teachers()

    def _restart(self, pool: RolloutPool) -> None:
        """Starts a lost worker of another model anew; what it samples from is its checkpoint."""
        for worker, reason in pool.lost.items():
            self._restarts.spend(worker, reason)
        pool.restart_lost()

    def _revive(self) -> None:
        """Starts lost rollout workers anew and brings them to the newest published weights. A
        request's seed decides its sample, so work that is asked again gives what the lost worker
        would have given.
        """
        with self._reviving:  # a push and a sample may both find a worker lost
            for worker, reason in self.rollouts.lost.items():
                self._restarts.spend(worker, reason)
            self.rollouts.restart_lost(self.store.refill)

    def try_out(
        self, trials_N: list[Trial], how: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """See contracts.Crew. Raises RunError when a critic's own weights are not what they were
        before.
        """

        def revive() -> None:
            for worker, reason in self._critics.lost.items():
                self._restarts.spend(worker, reason)
            self._critics.restart_lost(self._drafts.refill)

        self.version += 1
        self._drafts.push(
            self.learn.export(TEACHER, self.version, self._drafts.have(TEACHER), TEACHER)
        )
        before = self._critics.all(Critic.digest)[0]
        answers: list[tuple[tuple[int, ...], ...] | Failure] = []
        size = max(len(self._critics.workers), 1) * self._config.critics.copies_per_pass * STACKS
        for start in range(0, len(trials_N), size):
            answers += self._critics.map_again(
                revive, Critic.try_out, trials_N[start : start + size], TEACHER, self.version, how
            )
        for worker, after in zip(
            self._critics.workers, self._critics.all(Critic.digest), strict=True
        ):
            if after != before:
                raise RunError(f"{worker.name}: trying out dreams changed the model itself")
        return answers

    def score(self, pairs_N: list[Pair | Failure]) -> tuple[list[float | Failure], Metrics]:
        """Equation 4 for each pair, in order. What one part could not score is a Failure, and
        counted.
        """
        sound = [pair for pair in pairs_N if not isinstance(pair, Failure)]
        literal = self._literal.score(sound)
        semantic = self._semantic.score(sound) if self._semantic else [0.0] * len(sound)
        gamma = self._config.gamma
        mixed = [
            a if isinstance(a, Failure) else mixture(s, a, gamma)
            for s, a in zip(semantic, literal, strict=True)
        ]
        scored = iter(mixed)
        rewards = [pair if isinstance(pair, Failure) else next(scored) for pair in pairs_N]
        numbers = _numbers(mixed)
        metrics = {
            "reward_mean": statistics.fmean(numbers) if numbers else float("nan"),
            "reward_std": statistics.pstdev(numbers) if numbers else float("nan"),
            "reward_failed": float(len(pairs_N) - len(numbers)),
        }
        parts = {"reward_abs": literal} | ({"reward_sem": semantic} if self._semantic else {})
        metrics |= {
            key: statistics.fmean(_numbers(part)) for key, part in parts.items() if _numbers(part)
        }
        return rewards, metrics

    def forget(self) -> None:
        """Drops every cached context of the rollout workers."""
        try:
            self.rollouts.all(Rollout.forget)
            if self._critics.workers:
                self._critics.all(Critic.forget)
        except (WorkerDied, WorkerLate):
            # a new worker has nothing cached; a lost critic is started anew when it is needed
            self._revive()

    def close(self) -> None:
        """Lets the workers end in good order; the backend ends those that do not."""
        with suppress(WorkerDied, WorkerLate):  # the life is over: nothing is owed any more
            self.rollouts.all(Rollout.close)
            if self._critics.workers:
                self._critics.all(Critic.close)
            if self._has_learners:
                self.learn.close()


def _until(check: Callable[[], None], backend: Backend, limit_s: float) -> None:
    """Passes once `check` raises no InputError, within `limit_s`; 0: at once."""
    deadline, said = time.monotonic() + limit_s, False
    while True:
        try:
            return check()
        except InputError as error:
            if time.monotonic() >= deadline:
                raise
            if not said:
                backend.watch.say(f"waiting up to {clock(limit_s)} for a node: {error}")
            said = True
            time.sleep(1)


def _rollout(backend: Backend, config: Config, checkpoint: str, name: str) -> Handle:
    r = config.rollouts
    kwargs = {
        "checkpoint": checkpoint,
        "dtype": config.model.dtype,
        "engine": dict(r.engine),
        "seed": config.run.seed,
        "tensor_parallel": r.tensor_parallel,
        "probe_tolerance": config.probe_tolerance,
    }
    env = {} if r.gpus else cpu_environment(r.threads)
    return backend.spawn(
        "actors.rollout:RolloutWorker", kwargs, name=name, cpus=r.cpus, gpus=r.gpus, env=env
    )


def _critics(backend: Backend, config: Config, checkpoint: str) -> list[Handle]:
    c, d = config.critics, config.dream
    kwargs = {
        "checkpoint": checkpoint,
        "dtype": config.model.dtype,
        "engine": {**config.rollouts.engine, **c.engine},
        "seed": config.run.seed,
        "rank": d.copies.rank,
        "alpha": d.copies.alpha,
        "copies_per_pass": c.copies_per_pass,
        "device": "cuda" if c.gpus else "cpu",
        "probe_tolerance": config.probe_tolerance,
        "threads": c.threads,
    }
    env = {} if c.gpus else cpu_environment(c.threads)
    return [
        backend.spawn(
            "actors.critic:CriticWorker",
            kwargs,
            name=f"critic-{i}",
            cpus=c.cpus,
            gpus=c.gpus,
            env=env,
        )
        for i in range(c.workers)
    ]


def _learners(
    backend: Backend, config: Config, checkpoint: str, base: str, probe_T: tuple[int, ...]
) -> list[Handle]:
    v = config.learners
    kwargs = {"checkpoint": checkpoint, "config": config, "probe_T": probe_T, "base": base}
    env = {
        "OMP_NUM_THREADS": str(v.threads),
        "DS_ACCELERATOR": "cuda" if v.gpus else "cpu",
        # wait awake for about 30 us: asleep, every small operation waits for its threads;
        "GOMP_SPINCOUNT": "30000",
    }
    # longer, and threads that only wait take the cores that the rollouts need
    return backend.spawn_ranks(
        "learners.worker:LearnerWorker",
        kwargs,
        name="learner",
        world_size=v.world_size,
        cpus=v.cpus,
        gpus=v.gpus,
        env=env,
    )


def _semantic(backend: Backend, config: Config, base: str) -> list[Handle]:
    r = config.reward
    if r.semantic == "none":
        return []
    if r.semantic == "custom":
        own = {"target": r.target, "options": dict(r.options), "tokenizer_path": base}
        return _rewards(
            backend, config, "semantic", "actors.custom_reward:CustomReward", own, r.gpus
        )
    kwargs: dict[str, Any] = {"model": r.model or base, "tokenizer_path": base}
    if r.semantic == "encoder":
        kwargs |= {"threshold": r.threshold, "device": "cuda" if r.gpus else "cpu"}
        return _rewards(
            backend, config, "semantic", "actors.semantic_reward:EncoderReward", kwargs, r.gpus
        )
    kwargs |= {
        "template": r.template,
        "dtype": config.model.dtype,
        "engine": dict(config.rollouts.engine),
    }
    return _rewards(
        backend, config, "semantic", "actors.semantic_reward:JudgeReward", kwargs, r.gpus
    )


def _rewards(
    backend: Backend, config: Config, role: str, cls: str, kwargs: dict, gpus: float
) -> list[Handle]:
    env = {} if gpus else cpu_environment(1)
    return [
        backend.spawn(cls, kwargs, name=f"{role}-{i}", cpus=config.reward.cpus, gpus=gpus, env=env)
        for i in range(config.reward.workers)
    ]


def _numbers(values: list[float | Failure]) -> list[float]:
    return [value for value in values if not isinstance(value, Failure)]
