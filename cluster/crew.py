"""The crew of a run: its workers, behind the methods that the driver calls (contracts.Crew)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cluster.runtime.backend import Backend
from cluster.runtime.handle import Handle, WorkerDied, WorkerTimeout, wait_all
from cluster.runtime.pool import Pool
from cluster.runtime.restarts import Restarts
from cluster.runtime.role_pools import RewardPool, RolloutPool
from cluster.scale import Scaler
from cluster.weights import WeightStore
from cluster.worker_specs import CrewHandles, CrewSpec, spawn_crew, spawn_rollout
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import (
    CHECKPOINT,
    STUDENT,
    TEACHER,
    Metrics,
    Pair,
    Request,
    Sample,
    Sampling,
    Trial,
    peer_name,
)
from sleep_rl.contracts.roles import Critic, Learner, Rollout
from sleep_rl.journal.journal import Journal
from sleep_rl.journal.text import clock
from sleep_rl.rewards import mixture

# batches of copies in one call of a critic, which trains one while the engine answers for another;
# they share the call's timeout
BATCHES_PER_CALL = 4
# with sleep.lag above 0: the longest time that a push waits for samples in flight
SLICE_S = 0.25


class LearnerGroup:
    """Implements contracts.Learner over the ranks of a learner group: every rank gets each call,
    and rank 0's result is returned.
    """

    def __init__(self, handles: list[Handle], timeout_s: float):
        self._handles = handles
        self._timeout_s = timeout_s

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(Learner, name)  # an unknown name fails here, not in a worker

        def call(*args: Any, **kwargs: Any) -> Any:
            pendings = [handle.start(method, *args, **kwargs) for handle in self._handles]
            return wait_all(pendings, self._timeout_s, f"learners: {name}")[0]

        return call


class WorkerCrew:
    """Implements contracts.Crew on a backend; `start_crew` starts its workers."""

    def __init__(
        self,
        backend: Backend,
        spec: CrewSpec,
        handles: CrewHandles,
        journal: Journal,
        restarts: Restarts,
        requested_rollouts: Callable[[], int | None] = lambda: None,
    ):
        """Create the crew of started workers. `requested_rollouts()`: the number of rollout workers
        that `sleep-rl scale` requested last, or None.
        """
        config = spec.config
        call_s = config.cluster.call_timeout_s
        reward_s = config.reward.timeout_s
        self.version = 0
        self._backend = backend
        self._spec = spec
        self._journal = journal
        self._on_restart = restarts.count
        self._requested_rollouts = requested_rollouts
        slice_s = SLICE_S if config.sleep.lag else None
        self.rollouts = RolloutPool(handles.rollouts, call_s, self._on_restart, slice_s)
        self.store = WeightStore(backend, self.rollouts)
        self._scaler = Scaler(
            backend, self.rollouts, self.store, journal, self._spawn_rollout, self._preflight
        )
        self.learn: Learner = LearnerGroup(handles.ranks, call_s)
        self._has_learners = bool(handles.ranks)
        self._edit_distance = RewardPool(handles.edit_distance, reward_s, self._on_restart)
        self._semantic = None
        if handles.semantic:
            self._semantic = RewardPool(handles.semantic, reward_s, self._on_restart)
        self._critics = Pool("critics", handles.critics, call_s, self._on_restart)
        self._critic_store = WeightStore(backend, self._critics)
        self._teacher_pools: dict[str, RolloutPool] = {}

    def push(self, name: str, view: str) -> None:
        """Export the learner's `view` as a delta of what the workers hold, and wait until all of
        them have loaded and verified it.
        """
        self.push_async(name, view)()

    def push_async(self, name: str, view: str) -> Callable[[], None]:
        """Export and publish; the returned function delivers. See contracts.Crew."""
        self._scaler.step(self._requested_rollouts())
        self.version += 1
        weights = self.learn.export(name, self.version, self.store.have(name), view)
        ref = self.store.publish(weights)
        version = weights.version

        def deliver() -> None:
            try:
                self.store.deliver(name, version, ref)
            except (WorkerDied, WorkerTimeout):
                self.rollouts.restart_failed()
                self.store.confirm(name, version)
            metrics = {key.removeprefix("push/"): n for key, n in self.store.metrics.items()}
            self._journal.log("push", name=name, version=version, **metrics)

        return deliver

    def resume(self, checkpoint: str, version: int) -> None:
        """Restore the learners from a checkpoint, and push its teacher to the rollout workers.

        `version`: number of the last push before the checkpoint.
        """
        self.learn.load_checkpoint(checkpoint)
        self.version = version
        # versions are numbered from 1
        self.store.push(
            self.learn.export(TEACHER, max(version, 1), self.store.have(TEACHER), TEACHER)
        )

    def restore_progress(self, path: str, step: int, steps: int) -> None:
        """See contracts.Crew."""
        self.learn.restore_progress(path, step, steps)
        self.store.push(self.learn.export(STUDENT, self.version, self.store.have(STUDENT), STUDENT))

    def sample(
        self, requests_N: list[Request], name: str, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order, from the current version of state
        `name` or a newer one. Requests are split over the workers.
        """
        if name in self._teacher_pools:
            samples = self._teacher_pools[name].sample(requests_N, CHECKPOINT, 0, sampling)
        else:
            version = 0 if name == CHECKPOINT else self.store.current(name)
            samples = self.rollouts.sample(requests_N, name, version, sampling)
        if self._teacher_pools:  # what one of these models writes another one reads
            samples = [_with_ids_below(self._spec.shared_ids, sample) for sample in samples]
        return samples

    def logprobs(self, requests_N: list[Request], name: str) -> list[tuple[float, ...] | Failure]:
        """Return the log-probabilities of each request's prompt_T, see roles.Crew."""
        version = 0 if name == CHECKPOINT else self.store.current(name)
        return self.rollouts.logprobs(requests_N, name, version)

    def start_teachers(self) -> None:
        """Start one rollout worker per model of model.teachers, and load the models into the
        learners.
        """
        teachers = self._spec.teachers
        self.learn.load_teachers(list(teachers))
        names = [peer_name(k) for k in range(1, len(teachers) + 1)]
        handles = [
            spawn_rollout(self._backend, self._spec.config, path, name)
            for name, path in zip(names, teachers, strict=True)
        ]
        self._backend.ready(handles)
        call_s = self._spec.config.cluster.call_timeout_s
        self._teacher_pools = {
            name: RolloutPool([handle], call_s, self._on_restart)
            for name, handle in zip(names, handles, strict=True)
        }

    def stop_teachers(self) -> None:
        """End the workers of model.teachers, and unload the models from the learners."""
        for pool in self._teacher_pools.values():
            with suppress(WorkerDied, WorkerTimeout):
                pool.call_all(Rollout.close)
            for handle in pool.workers:
                handle.kill()
        self._teacher_pools = {}
        self.learn.unload_teachers()

    def try_out(
        self, trials_N: list[Trial], sampling: Sampling
    ) -> list[tuple[tuple[int, ...], ...] | Failure]:
        """See contracts.Crew. Raises RunError when a critic's weights differ afterwards."""
        self.version += 1
        have = self._critic_store.have(TEACHER)
        self._critic_store.push(self.learn.export(TEACHER, self.version, have, TEACHER))
        before = self._critics.call_all(Critic.digest)[0]
        results: list[tuple[tuple[int, ...], ...] | Failure] = []
        workers = max(len(self._critics.workers), 1)
        size = workers * self._spec.config.critics.copies_per_pass * BATCHES_PER_CALL
        for start in range(0, len(trials_N), size):
            trials = trials_N[start : start + size]
            results += self._critics.map_with_retry(
                Critic.try_out, trials, TEACHER, self.version, sampling
            )
        digests = self._critics.call_all(Critic.digest)
        for worker, after in zip(self._critics.workers, digests, strict=True):
            if after != before:
                raise RunError(f"{worker.name}: trying out dreams changed the model itself")
        return results

    def score(self, pairs_N: list[Pair | Failure]) -> tuple[list[float | Failure], Metrics]:
        """Return the reward of equation 4 for each pair, in order, and metrics of its parts.

        A pair that r_abs or r_sem could not score is a Failure; `reward_failed` counts them.
        """
        pairs = [pair for pair in pairs_N if not isinstance(pair, Failure)]
        edit_distance = self._edit_distance.score(pairs)
        semantic = self._semantic.score(pairs) if self._semantic else [0.0] * len(pairs)
        gamma = self._spec.config.gamma
        mixed = [
            a if isinstance(a, Failure) else mixture(s, a, gamma)
            for s, a in zip(semantic, edit_distance, strict=True)
        ]
        scored = iter(mixed)
        rewards = [pair if isinstance(pair, Failure) else next(scored) for pair in pairs_N]
        numbers = _numbers(mixed)
        metrics = {
            "reward_mean": statistics.fmean(numbers) if numbers else float("nan"),
            "reward_std": statistics.pstdev(numbers) if numbers else float("nan"),
            "reward_failed": float(len(pairs_N) - len(numbers)),
        }
        parts = {"reward_abs": edit_distance}
        if self._semantic:
            parts["reward_sem"] = semantic
        for key, part in parts.items():
            if numbers := _numbers(part):
                metrics[key] = statistics.fmean(numbers)
        return rewards, metrics

    def drop_caches(self) -> None:
        """Drop the prefix caches of the rollout workers and critics."""
        try:
            self.rollouts.call_all(Rollout.drop_caches)
            if self._critics.workers:
                self._critics.call_all(Critic.drop_caches)
        except (WorkerDied, WorkerTimeout):
            # a new worker has an empty cache; a failed critic is restarted by its next call
            self.rollouts.restart_failed()

    def close(self) -> None:
        """Close the workers; the backend kills those that do not end."""
        with suppress(WorkerDied, WorkerTimeout):  # the run has ended, nobody needs them
            self.rollouts.call_all(Rollout.close)
            if self._critics.workers:
                self._critics.call_all(Critic.close)
            if self._has_learners:
                self.learn.close()

    def _spawn_rollout(self, number: int) -> Handle:
        name = f"rollout-{number}"
        return spawn_rollout(self._backend, self._spec.config, self._spec.checkpoint, name)

    def _preflight(self, rollouts: int) -> None:
        self._backend.preflight(self._spec.requests(rollouts))


def start_crew(
    backend: Backend,
    spec: CrewSpec,
    journal: Journal,
    restarts: Restarts | None = None,
    requested_rollouts: Callable[[], int | None] = lambda: None,
    is_restart: bool = False,
) -> WorkerCrew:
    """Start the workers of a crew and wait until all are constructed.

    `restarts`: the run's budget; None: a new one. `requested_rollouts`: see WorkerCrew.
    `is_restart`: the cluster held these workers before, so that missing nodes are waited for up to
    cluster.start_timeout_s instead of cluster.wait_for_nodes_s. Raises InputError when the nodes
    cannot run all workers.
    """
    cluster = spec.config.cluster
    rollouts = spec.config.rollouts.workers
    limit_s = backend.start_timeout_s if is_restart else cluster.wait_for_nodes_s
    wait_for_resources(lambda: backend.preflight(spec.requests(rollouts)), backend, limit_s)
    handles = spawn_crew(backend, spec)
    budget = restarts or Restarts(cluster.restarts, journal)
    return WorkerCrew(backend, spec, handles, journal, budget, requested_rollouts)


def wait_for_resources(check: Callable[[], None], backend: Backend, limit_s: float) -> None:
    """Call `check` every second until it raises no InputError; raise its error after `limit_s`."""
    deadline = time.monotonic() + limit_s
    announced = False
    while True:
        try:
            return check()
        except InputError as error:
            if time.monotonic() >= deadline:
                raise
            if not announced:
                backend.watchdog.say(f"waiting up to {clock(limit_s)} for a node: {error}")
            announced = True
            time.sleep(1)


def _numbers(values: list[float | Failure]) -> list[float]:
    return [value for value in values if not isinstance(value, Failure)]


def _with_ids_below(limit: int, sample: Sample | Failure) -> Sample | Failure:
    """Return a sample, or a Failure for one with an id that only pads the vocabulary of its model:
    a model of fewer ids cannot read it.
    """
    if isinstance(sample, Failure) or max(sample.completion_T, default=0) < limit:
        return sample
    return Failure(f"a token beyond the {limit} ids that student and teachers share", "sample")
