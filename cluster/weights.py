"""The versioned store of memory states: the learner publishes a delta once, and every worker loads
and verifies it.

A version is current only after every worker in use has verified it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from cluster.runtime.backend import Backend
from cluster.runtime.handle import Handle, Ref, WorkerDied, WorkerTimeout
from cluster.runtime.pool import Pool
from sleep_rl.contracts.errors import RunError
from sleep_rl.contracts.records import LoadReport, Metrics, Weights
from sleep_rl.contracts.roles import Rollout
from sleep_rl.model.tensor_digest import digest


class WeightsDamaged(RunError):
    """The stored tensors differ from the published ones, so that no worker can load them."""


class WeightStore:
    """Holds the newest state of each name as tensors in the object store, addressed by digest.

    `metrics`: of the last push. Restarted workers of `pool` are refilled before they are used.
    """

    def __init__(self, backend: Backend, pool: Pool) -> None:
        self._backend = backend
        self._pool = pool
        pool.prepare_restarted_with(self.refill)
        self._newest: dict[str, Weights] = {}  # name -> published version, without its tensors
        # digest -> the delta that contains the tensor, and its key there
        self._locations: dict[str, tuple[Ref[Weights], str]] = {}
        # name -> version that every worker in use has verified (some may hold a newer one)
        self._verified: dict[str, int] = {}
        # versions may be published while others are delivered
        self._lock = threading.RLock()
        self.metrics: Metrics = {}

    def current(self, name: str) -> int:
        """Return the version of `name` that every worker in use has verified; some may hold a newer
        verified one. Raises RunError when there is none.
        """
        if name in self._verified:
            return self._verified[name]
        published = "none published"
        if name in self._newest:
            published = f"version {self._newest[name].version} is published"
        raise RunError(f"weights: no version of {name} is verified by every worker ({published})")

    def have(self, name: str) -> dict[str, str]:
        """Return key -> digest of the tensors that the workers hold: the argument `have` of
        Learner.export. A new name starts from the last push of any name.
        """
        with self._lock:
            known = self._newest.get(name) or next(reversed(self._newest.values()), None)
        return dict(known.manifest) if known else {}

    def publish(self, weights: Weights) -> Ref[Weights]:
        """Store the delta once and make it the newest version of its name; returns its Ref.

        Raises RunError when neither the delta nor the store holds a tensor of the manifest, or when
        the version is not newer than the last one.
        """
        with self._lock:
            self._check(weights)
            ref = self._backend.put(weights)
            self._newest.pop(weights.name, None)  # the last entry is the last push: see `have`
            self._newest[weights.name] = replace(weights, tensors={})
            for key in weights.tensors:
                if key in weights.manifest:
                    self._locations[weights.manifest[key]] = (ref, key)
            named = set()
            for newest in self._newest.values():
                named |= set(newest.manifest.values())
            self._locations = {d: at for d, at in self._locations.items() if d in named}
            return ref

    def _check(self, weights: Weights) -> None:
        name = f"weights: {weights.name} version {weights.version}"
        newest = self._newest.get(weights.name)
        if newest and weights.version <= newest.version:
            raise RunError(f"{name} after version {newest.version}")
        absent = [
            key
            for key, tensor_digest in weights.manifest.items()
            if key not in weights.tensors and tensor_digest not in self._locations
        ]
        if absent:
            raise RunError(
                f"{name} lacks {len(absent)} tensors that were never published, first {absent[0]}"
            )

    def push(self, weights: Weights) -> list[LoadReport]:
        """Publish, and wait until every worker in use has loaded and verified it. Raises RunError
        when one does not.
        """
        return self.deliver(weights.name, weights.version, self.publish(weights))

    def deliver(self, name: str, version: int, ref: Ref[Weights]) -> list[LoadReport]:
        """Wait until every worker in use has loaded and verified a published version; return their
        reports.

        A worker that lacks tensors is sent all of them, once. Meanwhile the previous version stays
        current. Raises RunError when a worker cannot load this version; no version is current then.
        """
        started = time.monotonic()
        try:
            reports = self._load(self._pool.workers, name, version, ref)
            if not reports:
                raise RunError(
                    f"weights: no rollout worker is left to load {name} version {version}"
                )
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
        """Make a version current after failed workers were refilled. Raises RunError when a worker
        in use holds neither it nor a newer one.
        """
        held = self._pool.call_all(Rollout.held)
        if any(versions.get(name, -1) < version for versions in held):
            raise RunError(
                f"weights: {name} version {version} is not held by every worker, but {held}"
            )
        self._verified[name] = version
        # earlier measurements belong to another push
        self.metrics = {"push/workers": len(held)}

    def refill(self, handles: list[Handle]) -> None:
        """Load the newest version of every name into restarted or new workers."""
        for name, newest in tuple(self._newest.items()):
            self._load(handles, name, newest.version, self._backend.put(self._full(name)))

    def _load(
        self, handles: list[Handle], name: str, version: int, ref: Ref[Weights]
    ) -> list[LoadReport]:
        """Load a delta into workers; those that refuse it, for lack of tensors, get the full
        state.
        """
        handles = list(handles)
        reports: list[Any] = self._pool.call(handles, Rollout.load, [(ref,)] * len(handles))
        refused = [i for i, report in enumerate(reports) if _is_refusal(report)]
        if refused:
            full = self._backend.put(self._full(name))
            refusing = [handles[i] for i in refused]
            retried = self._pool.call(refusing, Rollout.load, [(full,)] * len(refusing))
            for i, report in zip(refused, retried, strict=True):
                reports[i] = report
        for handle, report in zip(handles, reports, strict=True):
            if isinstance(report, Exception):
                raise report
            # a full state is always the newest, which may be newer than `version`
            if report.name != name or report.version < version:
                raise RunError(
                    f"worker {handle.name}: requested was {name} version {version}, "
                    f"loaded was {report.name} version {report.version}"
                )
        return reports

    def _full(self, name: str) -> Weights:
        """Return the newest version of `name` with every tensor of its manifest. Raises
        WeightsDamaged when a digest does not match.
        """
        with self._lock:
            newest = self._newest[name]
            locations = {key: self._locations[d] for key, d in newest.manifest.items()}
        refs = {id(ref): ref for ref, _ in locations.values()}
        deltas = {key: self._backend.get(ref) for key, ref in refs.items()}
        tensors = {
            key: deltas[id(ref)].tensors[key_in_delta]
            for key, (ref, key_in_delta) in locations.items()
        }
        wrong = [key for key, tensor in tensors.items() if digest(tensor) != newest.manifest[key]]
        if wrong:
            raise WeightsDamaged(
                f"weights: {name} version {newest.version} is damaged in the store: "
                f"{len(wrong)} tensors, first {wrong[0]}"
            )
        return replace(newest, tensors=tensors)


def _is_refusal(result: Any) -> bool:
    """Return whether the worker's own method raised RunError."""
    return isinstance(result, RunError) and not isinstance(result, WorkerDied | WorkerTimeout)
