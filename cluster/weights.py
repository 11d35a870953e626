"""The versioned store of memory states: a writer publishes a delta once, and every reader proves
that it has it.

A version counts as current only after every rollout worker in use has loaded and verified it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from cluster.runtime.pool import Pool
from cluster.runtime.ray_backend import Backend, Handle, Ref, WorkerDied, WorkerLate
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import LoadReport, Metrics, Weights
from sleep_rl.contracts.roles import Rollout
from sleep_rl.model.tensor_digest import digest


class WeightsDamaged(RunError):
    """What the store holds is not what was published: no worker can be given it any more."""


class WeightStore:
    """Holds the newest state of each name as tensors in the object store, addressed by digest.

    `metrics` describes the last push.
    """

    def __init__(self, backend: Backend, pool: Pool) -> None:
        self._backend, self._pool = backend, pool
        self._newest: dict[str, Weights] = {}  # name -> what was published, without its tensors
        # digest -> the delta that holds it, and its key there
        self._places: dict[str, tuple[Ref[Weights], str]] = {}
        # name -> version that every worker in use holds, or a newer one
        self._verified: dict[str, int] = {}
        # of what is published; versions may be published while others are delivered
        self._lock = threading.RLock()
        self.metrics: Metrics = {}

    def current(self, name: str) -> int:
        """The version of `name` that every worker in use holds; some may hold a newer one already,
        verified, too.
        """
        if name not in self._verified:
            newest = (
                f"version {self._newest[name].version} is published"
                if name in self._newest
                else "none published"
            )
            raise RunError(f"weights: no version of {name} is verified by every worker ({newest})")
        return self._verified[name]

    def have(self, name: str) -> dict[str, str]:
        """Key -> digest of what readers have: the `have` of Learner.export. A new name starts from
        the last push.
        """
        with self._lock:
            known = self._newest.get(name) or next(reversed(self._newest.values()), None)
        return dict(known.manifest) if known else {}

    def digests(self) -> set[str]:
        """Digests whose tensors are held."""
        return set(self._places)

    def refs(self) -> int:
        """Number of deltas held in the object store."""
        return len({id(ref) for ref, _ in self._places.values()})

    def publish(self, weights: Weights) -> Ref[Weights]:
        """Stores the delta once and makes it the newest of its name. Raises RunError when neither
        the delta nor the store holds a tensor that the manifest names, or when the version is not
        newer.
        """
        with self._lock:
            before = self._newest.get(weights.name)
            if before and weights.version <= before.version:
                raise RunError(
                    f"weights: {weights.name} version {weights.version} after version "
                    f"{before.version}"
                )
            absent = [
                key
                for key, digest in weights.manifest.items()
                if key not in weights.tensors and digest not in self._places
            ]
            if absent:
                raise RunError(
                    f"weights: {weights.name} version {weights.version} lacks "
                    f"{len(absent)} tensors that were "
                    f"never published, first {absent[0]}"
                )
            ref = self._backend.put(weights)
            self._newest.pop(weights.name, None)  # the last entry is the last push: see `have`
            self._newest[weights.name] = replace(weights, tensors={})
            self._places |= {
                weights.manifest[key]: (ref, key)
                for key in weights.tensors
                if key in weights.manifest
            }
            named = {
                digest for newest in self._newest.values() for digest in newest.manifest.values()
            }
            self._places = {
                digest: place for digest, place in self._places.items() if digest in named
            }
            return ref

    def push(self, weights: Weights) -> list[LoadReport]:
        """Publishes, and lets every worker in use load and verify it. Raises RunError when any does
        not.
        """
        return self.deliver(weights.name, weights.version, self.publish(weights))

    def deliver(self, name: str, version: int, ref: Ref[Weights]) -> list[LoadReport]:
        """Lets every worker in use load and verify what was published. A worker that lacks tensors
        gets all of them, once. Until then the version before stays current; when a worker does not
        end up with this version none is, and RunError is raised.
        """
        began = time.monotonic()
        try:
            loaded = self._load(self._pool.workers, name, version, ref)
            if not loaded:
                raise RunError(f"weights: no rollout worker left to load {name} version {version}")
        except BaseException:
            self._verified.pop(name, None)
            raise
        self._verified[name] = version
        self.metrics = {
            "push/bytes": sum(l.bytes for l in loaded),
            "push/tensors": sum(l.tensors for l in loaded),
            "push/seconds": time.monotonic() - began,
            "push/workers": len(loaded),
            "push/pause": max(l.seconds for l in loaded),
        }
        if all(l.probe_gap is not None for l in loaded):
            self.metrics["push/probe_gap"] = max(l.probe_gap for l in loaded)
        return loaded

    def confirm(self, name: str, version: int) -> None:
        """Counts a version as current after lost workers were refilled. Raises RunError when a
        worker in use does not hold it or a newer one.
        """
        held = self._pool.all(Rollout.held)
        if any(each.get(name, -1) < version for each in held):
            raise RunError(
                f"weights: {name} version {version} is not held by every worker, but {held}"
            )
        self._verified[name] = version
        # what was measured before belongs to another push
        self.metrics = {"push/workers": len(held)}

    def refill(self, handles: list[Handle]) -> None:
        """Loads the newest state of every name into workers that were started anew."""
        for name, newest in tuple(self._newest.items()):
            self._load(handles, name, newest.version, self._backend.put(self._full(name)))

    def _load(
        self, handles: list[Handle], name: str, version: int, ref: Ref[Weights]
    ) -> list[LoadReport]:
        handles = list(handles)
        answers: list[Any] = self._pool.ask(handles, Rollout.load, [(ref,)] * len(handles))
        again = [
            i
            for i, answer in enumerate(answers)
            if isinstance(answer, RunError) and not isinstance(answer, WorkerDied | WorkerLate)
        ]
        if again:
            full = self._backend.put(self._full(name))
            retried = self._pool.ask(
                [handles[i] for i in again], Rollout.load, [(full,)] * len(again)
            )
            answers = [
                retried[again.index(i)] if i in again else answer
                for i, answer in enumerate(answers)
            ]
        for handle, answer in zip(handles, answers):
            if isinstance(answer, Exception):
                raise answer
            # whole states are always the newest
            if answer.name != name or answer.version < version:
                raise RunError(
                    f"worker {handle.name}: asked to load {name} version {version}, "
                    f"reports {answer.name} version {answer.version}"
                )
        return answers

    def _full(self, name: str) -> Weights:
        """The newest state of `name` with every tensor of its manifest, each checked. Raises
        WeightsDamaged.
        """
        with self._lock:
            newest = self._newest[name]
            places = {key: self._places[digest] for key, digest in newest.manifest.items()}
        fetched = {
            key: self._backend.get(ref)
            for key, ref in {id(ref): ref for ref, _ in places.values()}.items()
        }
        tensors = {key: fetched[id(ref)].tensors[there] for key, (ref, there) in places.items()}
        wrong = [key for key, tensor in tensors.items() if digest(tensor) != newest.manifest[key]]
        if wrong:
            raise WeightsDamaged(
                f"weights: {name} version {newest.version} is damaged in the store: "
                f"{len(wrong)} tensors, "
                f"first {wrong[0]}"
            )
        return replace(newest, tensors=tensors)
