"""The versioned store of memory states: the learner publishes a delta once, and every worker proves
that it has loaded it.

A version counts as current only after every worker in use has loaded and verified it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from cluster.runtime.backend import Backend
from cluster.runtime.handle import Handle, Ref, WorkerDied, WorkerLate
from cluster.runtime.pool import Pool
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import LoadReport, Metrics, Weights
from sleep_rl.contracts.roles import Rollout
from sleep_rl.model.tensor_digest import digest


class WeightsDamaged(RunError):
    """What the store holds is not what was published: it cannot be given to workers any more."""


class WeightStore:
    """Holds the newest state of each name as tensors in the object store, addressed by digest.

    `metrics` describes the last push. Workers of the pool that are restarted are refilled.
    """

    def __init__(self, backend: Backend, pool: Pool) -> None:
        self._backend = backend
        self._pool = pool
        pool.prepare_restarted_with(self.refill)
        self._newest: dict[str, Weights] = {}  # name -> what was published, without its tensors
        # digest -> the delta that holds it, and its key there
        self._places: dict[str, tuple[Ref[Weights], str]] = {}
        # name -> version that every worker in use holds, or a newer one
        self._verified: dict[str, int] = {}
        # of what is published; versions may be published while others are delivered
        self._lock = threading.RLock()
        self.metrics: Metrics = {}

    def current(self, name: str) -> int:
        """Return the version of `name` that every worker in use holds; some may hold a newer one,
        also verified. Raises RunError when there is none.
        """
        if name in self._verified:
            return self._verified[name]
        published = "none published"
        if name in self._newest:
            published = f"version {self._newest[name].version} is published"
        raise RunError(f"weights: no version of {name} is verified by every worker ({published})")

    def have(self, name: str) -> dict[str, str]:
        """Return key -> digest of what the workers have: the `have` of Learner.export. A new name
        starts from the last push.
        """
        with self._lock:
            known = self._newest.get(name) or next(reversed(self._newest.values()), None)
        return dict(known.manifest) if known else {}

    def publish(self, weights: Weights) -> Ref[Weights]:
        """Store the delta once and make it the newest of its name.

        Raises RunError when neither the delta nor the store holds a tensor that the manifest names,
        or when the version is not newer.
        """
        with self._lock:
            self._check(weights)
            ref = self._backend.put(weights)
            self._newest.pop(weights.name, None)  # the last entry is the last push: see `have`
            self._newest[weights.name] = replace(weights, tensors={})
            for key in weights.tensors:
                if key in weights.manifest:
                    self._places[weights.manifest[key]] = (ref, key)
            named = set()
            for newest in self._newest.values():
                named |= set(newest.manifest.values())
            self._places = {d: place for d, place in self._places.items() if d in named}
            return ref

    def _check(self, weights: Weights) -> None:
        name = f"weights: {weights.name} version {weights.version}"
        newest = self._newest.get(weights.name)
        if newest and weights.version <= newest.version:
            raise RunError(f"{name} after version {newest.version}")
        absent = [
            key
            for key, tensor_digest in weights.manifest.items()
            if key not in weights.tensors and tensor_digest not in self._places
        ]
        if absent:
            raise RunError(
                f"{name} lacks {len(absent)} tensors that were never published, first {absent[0]}"
            )

    def push(self, weights: Weights) -> list[LoadReport]:
        """Publish, and let every worker in use load and verify it. Raises RunError when any does
        not.
        """
        return self.deliver(weights.name, weights.version, self.publish(weights))

    def deliver(self, name: str, version: int, ref: Ref[Weights]) -> list[LoadReport]:
        """Let every worker in use load and verify what was published; return their reports.

        A worker that lacks tensors gets all of them, once. Until then the version before stays
        current; when a worker does not end up with this version none is, and RunError is raised.
        """
        started = time.monotonic()
        try:
            reports = self._load(self._pool.workers, name, version, ref)
            if not reports:
                raise RunError(f"weights: no rollout worker left to load {name} version {version}")
        except BaseException:
            self._verified.pop(name, None)
            raise
        self._verified[name] = version
        self.metrics = {
            "push/bytes": sum(report.bytes for report in reports),
            "push/tensors": sum(report.tensors for report in reports),
            "push/seconds": time.monotonic() - started,
            "push/workers": len(reports),
            "push/pause": max(report.seconds for report in reports),
        }
        if all(report.probe_gap is not None for report in reports):
            self.metrics["push/probe_gap"] = max(report.probe_gap for report in reports)
        return reports

    def confirm(self, name: str, version: int) -> None:
        """Count a version as current after failed workers were refilled. Raises RunError when a
        worker in use does not hold it or a newer one.
        """
        held = self._pool.all(Rollout.held)
        if any(versions.get(name, -1) < version for versions in held):
            raise RunError(
                f"weights: {name} version {version} is not held by every worker, but {held}"
            )
        self._verified[name] = version
        # what was measured before belongs to another push
        self.metrics = {"push/workers": len(held)}

    def refill(self, handles: list[Handle]) -> None:
        """Load the newest state of every name into workers that were restarted or are new."""
        for name, newest in tuple(self._newest.items()):
            self._load(handles, name, newest.version, self._backend.put(self._full(name)))

    def _load(
        self, handles: list[Handle], name: str, version: int, ref: Ref[Weights]
    ) -> list[LoadReport]:
        """Let workers load a state; those that cannot, for lack of tensors, get the full one."""
        handles = list(handles)
        answers: list[Any] = self._pool.ask(handles, Rollout.load, [(ref,)] * len(handles))
        refused = [i for i, answer in enumerate(answers) if _is_refusal(answer)]
        if refused:
            full = self._backend.put(self._full(name))
            refusing = [handles[i] for i in refused]
            retried = self._pool.ask(refusing, Rollout.load, [(full,)] * len(refusing))
            for i, answer in zip(refused, retried, strict=True):
                answers[i] = answer
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            # a full state is always the newest, which may be newer than `version`
            if answer.name != name or answer.version < version:
                raise RunError(
                    f"worker {handle.name}: asked to load {name} version {version}, "
                    f"reports {answer.name} version {answer.version}"
                )
        return answers

    def _full(self, name: str) -> Weights:
        """Return the newest state of `name` with every tensor of its manifest, each checked. Raises
        WeightsDamaged.
        """
        with self._lock:
            newest = self._newest[name]
            places = {key: self._places[d] for key, d in newest.manifest.items()}
        refs = {id(ref): ref for ref, _ in places.values()}
        deltas = {key: self._backend.get(ref) for key, ref in refs.items()}
        tensors = {
            key: deltas[id(ref)].tensors[key_in_delta]
            for key, (ref, key_in_delta) in places.items()
        }
        wrong = [key for key, tensor in tensors.items() if digest(tensor) != newest.manifest[key]]
        if wrong:
            raise WeightsDamaged(
                f"weights: {name} version {newest.version} is damaged in the store: "
                f"{len(wrong)} tensors, first {wrong[0]}"
            )
        return replace(newest, tensors=tensors)


def _is_refusal(answer: Any) -> bool:
    """Return whether a worker raised RunError itself."""
    return isinstance(answer, RunError) and not isinstance(answer, WorkerDied | WorkerLate)
