"""Named weight states of one engine: load a push, verify it, switch between states.

A state is a manifest (memory key -> digest); its tensors are in a host cache by digest. The model
contains one state at a time, and switching copies only the tensors that differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from actors.engine import Engine
from actors.memory_access import write_mismatch
from sleep_rl.contracts.errors import RunError, one_line
from sleep_rl.contracts.records import CHECKPOINT, LoadReport, Weights
from sleep_rl.model.tensor_digest import as_tensor, digest


@dataclass(frozen=True)
class State:
    """A version of a named state: the digest of every memory tensor of the model."""

    name: str
    version: int
    manifest: dict[str, str]  # memory key -> digest

    @property
    def label(self) -> str:
        """Return the state's name in error messages."""
        return f"weights {self.name} v{self.version}"


class WeightStates:
    """The states that can be activated in `engine`; at the start the checkpoint's own, CHECKPOINT,
    so that the first push can be a delta of it.

    `probe_tolerance`: largest log-probability difference on a push's probe prompt, in nats.
    """

    def __init__(self, engine: Engine, probe_tolerance: float):
        self._engine = engine
        self._tolerance = probe_tolerance
        model_tensors = engine.read_memory()
        self._shapes = {key: (tuple(t.shape), t.dtype) for key, t in model_tensors.items()}
        # key -> digest of the tensor in the model; "" where it is unknown
        self._in_model = {key: digest(t) for key, t in model_tensors.items()}
        # digest -> CPU tensor
        self._cache = {self._in_model[key]: t for key, t in model_tensors.items()}
        self._states = {CHECKPOINT: State(CHECKPOINT, 0, dict(self._in_model))}
        self._active: tuple[str, int] | None = None  # name and version
        self.activate(CHECKPOINT)

    # ---- what is held

    def versions(self) -> dict[str, int]:
        """Return name -> version of every held state, CHECKPOINT as version 0."""
        return {name: state.version for name, state in self._states.items()}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return memory key -> CPU tensor of a held state."""
        return {key: self._cache[d] for key, d in self._states[name].manifest.items()}

    def is_outdated(self, weights: Weights) -> bool:
        """Return whether a newer version of this state is held, so that the push changes nothing.

        It is a delta that was published before this worker was refilled.
        """
        held = self._states.get(weights.name)
        return held is not None and held.version > weights.version

    # ---- changes

    def load(self, weights: Weights, probe: bool = True) -> LoadReport:
        """Load a pushed version: check it, copy the tensors that differ, verify bytes and probe.

        Without `probe` the report's `probe_gap` is None and the caller must call `check_probe`
        later. The report's `seconds` are the time of this call. After a RunError the previous
        states are still held, and the failed version is not.
        """
        start = time.perf_counter()
        if self.is_outdated(weights):
            version = self._states[weights.name].version
            return LoadReport(weights.name, version, 0, 0, time.perf_counter() - start, 0.0)
        self._cache |= self._staged(weights)
        state = State(weights.name, weights.version, dict(weights.manifest))
        try:
            copied = self._activate(state)
            gap = self.check_probe(weights) if probe else None
        except RunError:
            self._invalidate()
            raise
        self._states[weights.name] = state
        self._drop_unnamed_tensors()
        size = sum(self._cache[state.manifest[key]].nbytes for key in copied)
        return LoadReport(
            weights.name, weights.version, len(copied), size, time.perf_counter() - start, gap
        )

    def activate(self, name: str, least_version: int | None = None) -> None:
        """Make the model compute the held state `name`.

        Raises RunError when it is not held, when its version is older than `least_version`, and
        when the write into the model fails.
        """
        state = self._states.get(name)
        if state is None or (least_version is not None and state.version < least_version):
            raise RunError(
                f"rollout: {name} v{least_version} is not loaded here, held are {self.versions()}"
            )
        self._activate(state)

    def check_probe(self, weights: Weights) -> float:
        """Return the largest difference, in nats, between the engine's and the learner's
        log-probabilities of the probe prompt. The version must be active.

        Raises RunError when it exceeds the tolerance, or cannot be computed.
        """
        if not weights.probe_T:
            return 0.0
        label = f"weights {weights.name} v{weights.version}"
        expected = weights.probe_logprobs_T
        reason = self._engine.invalid_prompt(weights.probe_T)
        if not reason and len(expected) != len(weights.probe_T) - 1:
            reason = f"{len(expected)} log-probabilities for {len(weights.probe_T)} tokens"
        if reason:
            raise RunError(f"{label}: its probe prompt cannot be checked: {reason}")
        [logprobs] = self._engine.prompt_logprobs([weights.probe_T])
        gaps = [abs(a - b) for a, b in zip(logprobs, expected, strict=True)]
        if not all(gap <= self._tolerance for gap in gaps):  # also catches NaN
            raise RunError(
                f"{label}: log-probabilities of the probe prompt differ by {max(gaps):.2e} nats "
                f"from the learner's, checks.probe is {self._tolerance:.0e}"
            )
        return max(gaps, default=0.0)

    def discard(self, name: str) -> None:
        """Drop a state whose probe failed after it was loaded."""
        self._states.pop(name, None)
        self._invalidate()

    def clear(self) -> None:
        """Drop every state; nothing can be activated any more."""
        self._states.clear()
        self._cache.clear()

    # ---- checks

    def _staged(self, weights: Weights) -> dict[str, Tensor]:
        """Check a push and return its new tensors by digest; model and cache are not changed.

        The manifest must name every memory tensor of the model, so that a slot's router, w_in and
        w_out are always of one version. Raises RunError.
        """
        manifest = weights.manifest
        model_keys = self._shapes.keys()
        _refuse(weights, manifest.keys() - model_keys, "is in the manifest but not in this model")
        _refuse(weights, model_keys - manifest.keys(), "is missing from the manifest")
        _refuse(
            weights, weights.tensors.keys() - manifest.keys(), "was sent but is not in the manifest"
        )
        staged: dict[str, Tensor] = {}
        for key, value in weights.tensors.items():
            tensor = as_tensor(value)
            received = digest(tensor)
            if received != manifest[key]:
                _refuse(weights, {key}, f"has digest {received}, the manifest says {manifest[key]}")
            if received not in self._cache:
                staged[received] = tensor.clone()  # the sender may overwrite its own
        known = self._cache | staged
        _refuse(
            weights,
            {key for key, d in manifest.items() if d not in known},
            "was not sent and is not held here",
        )
        # the digest may be that of a held tensor with another shape or dtype
        for key, d in manifest.items():
            shape, dtype = self._shapes[key]
            if tuple(known[d].shape) != shape or known[d].dtype != dtype:
                _refuse(
                    weights,
                    {key},
                    f"is {known[d].dtype} {list(known[d].shape)}, this model has "
                    f"{dtype} {list(shape)}",
                )
        return staged

    def _activate(self, state: State) -> list[str]:
        """Make the model compute `state`; return the keys of the copied tensors.

        Raises RunError if the write fails; no state is active then.
        """
        if self._active == (state.name, state.version) and self._in_model == state.manifest:
            return []
        changed = [key for key, d in state.manifest.items() if self._in_model[key] != d]
        self._active = None
        if changed:
            self._write(state, changed)
            self._engine.reset_prefix_cache()  # its keys and values are of other weights
        self._engine.set_weight_version(str(state.version))
        if changed:
            self._verify(state, changed)
        self._in_model |= {key: state.manifest[key] for key in changed}
        self._active = (state.name, state.version)
        return changed

    def _write(self, state: State, keys: list[str]) -> None:
        self._in_model |= dict.fromkeys(keys, "")
        try:
            self._engine.write_memory({key: self._cache[state.manifest[key]] for key in keys})
        except Exception as error:  # a full /dev/shm, or whatever a worker process raised
            raise RunError(
                f"{state.label}: could not be written into the model ({one_line(error)})"
            ) from error

    def _verify(self, state: State, keys: list[str]) -> None:
        """Compare the digests in the model, on every rank, with the manifest. Raises RunError."""
        expected = {key: state.manifest[key] for key in keys}
        reason = write_mismatch(expected, self._engine.memory_digests(keys))
        if reason:
            raise RunError(f"{state.label}: {reason}")

    def _invalidate(self) -> None:
        """Mark no state as active, so that the next `activate` writes a held version."""
        self._active = None
        self._drop_unnamed_tensors()

    def _drop_unnamed_tensors(self) -> None:
        named = {d for state in self._states.values() for d in state.manifest.values()}
        self._cache = {d: tensor for d, tensor in self._cache.items() if d in named}


def _refuse(weights: Weights, keys: set[str], reason: str) -> None:
    """Raise RunError when `keys` is not empty, naming the first one."""
    if keys:
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise RunError(f"weights {weights.name} v{weights.version}: {min(keys)}{more} {reason}")
