"""The rollout worker: samples from named weight versions of one vLLM engine (contracts.Rollout).

A state is a manifest (memory key -> digest) beside a host cache of tensors by digest. The model
holds one state at a time; switching copies only the tensors that differ. Suffixes: `_T` tokens of
one sequence, `_N` requests of one call.
"""

from __future__ import annotations

import math
import resource
import time
from dataclasses import dataclass, field

from torch import Tensor
from vllm import RequestOutput, SamplingParams

from actors.engine import Engine
from sleep_rl.contracts.errors import Failure, InputError, RunError, one_line
from sleep_rl.contracts.records import LoadReport, Request, Sample, Sampling, Weights
from sleep_rl.model.checkpoints import read_config
from sleep_rl.model.tensor_digest import as_tensor, digest

BASE = "base"
"""Name of the state (version 0) that the checkpoint itself holds: known at the start, so a first
push is a delta.
"""


@dataclass(frozen=True)
class _State:
    version: int
    manifest: dict[str, str]  # memory key -> digest, for every memory tensor of the model


@dataclass
class _Batch:
    """Requests that are under way: all of them have begun in the state `name`."""

    name: str
    requests_N: list[Request]
    reasons_N: list[str]  # why a request cannot be answered; empty where it can
    fit: list[int]  # places of the requests that the engine was given, in order
    outputs: list[RequestOutput] = field(default_factory=list)  # of those that ended
    unprobed: Weights | None = None  # the version that was loaded meanwhile

    @property
    def done(self) -> bool:
        return len(self.outputs) == len(self.fit)


class RolloutWorker:
    """Implements contracts.Rollout.

    Arguments: `checkpoint`, the folder of a sleep checkpoint; `dtype`, of weights and activations;
    `engine`, options handed to vLLM as they are; `seed` of the engine (every request brings its
    own); `tensor_parallel`, GPUs of the engine; `probe_tolerance`, largest log-probability
    difference on a push's probe prompt, in nats. Raises InputError when the checkpoint has no
    memory or vLLM does not accept it.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        dtype: str,
        engine: dict,
        seed: int,
        tensor_parallel: int = 1,
        probe_tolerance: float = 1e-3,
    ):
        if not getattr(read_config(checkpoint), "memory_levels", None):
            raise InputError(
                f"rollout: a checkpoint with memory levels is needed, got {checkpoint}"
            )
        self._engine = Engine(
            checkpoint, dtype=dtype, options=engine, seed=seed, tensor_parallel=tensor_parallel
        )
        self._tolerance = probe_tolerance
        own = self._engine.read_memory()
        self._shapes = {key: (tuple(t.shape), t.dtype) for key, t in own.items()}
        # what lies in the model; "" where unknown
        self._live = {key: digest(t) for key, t in own.items()}
        self._cache = {self._live[key]: t for key, t in own.items()}  # digest -> CPU tensor
        self._states = {BASE: _State(0, dict(self._live))}
        self._active: tuple[str, int] | None = None
        self._batch: _Batch | None = None  # what is under way
        self._tokens, self._seconds = 0, 0.0
        self._activate(BASE, self._states[BASE])

    # ---- weights

    def load(self, weights: Weights) -> LoadReport:
        """Takes a version: checks it whole, copies what differs, verifies bytes and probe. See
        contracts.Rollout.

        After a RunError the states that were held before are still held, and the failed version is
        not. A version older than the held one changes nothing. Requests that are under way
        (`begin`) are frozen meanwhile, and go on with the new weights, their cached keys and values
        computed anew. The seconds of the answer are those of this pause, the checks of what was
        sent included.
        """
        start = time.perf_counter()
        held = self._states.get(weights.name)
        # a delta from before this worker was filled anew
        if held and held.version > weights.version:
            return LoadReport(weights.name, held.version, 0, 0, time.perf_counter() - start, 0.0)
        batch = self._batch
        if batch and batch.name != weights.name:
            self._go_on(batch, math.inf)  # nobody goes on in a state that is not its own
        start = time.perf_counter()
        self._cache |= self._stage(weights)
        under_way = batch is not None and not batch.done
        state = _State(weights.version, dict(weights.manifest))
        try:
            copied = self._activate(weights.name, state)
            gap = None if under_way else self._probe_gap(weights)
        except RunError:
            self._drop()
            raise
        # a probe's step would be one of theirs, too: it comes behind them, and they are held back
        # until then
        if under_way:
            batch.unprobed = weights
        self._states[weights.name] = state
        self._forget_unnamed()
        size = sum(self._cache[state.manifest[key]].nbytes for key in copied)
        return LoadReport(
            weights.name, weights.version, len(copied), size, time.perf_counter() - start, gap
        )

    def _drop(self) -> None:
        """What lies in the model did not pass."""
        self._active = None
        self._forget_unnamed()

    def held(self) -> dict[str, int]:
        """Name -> version that can be sampled from now; with `base`, the checkpoint's own memory,
        as version 0.
        """
        return {name: state.version for name, state in self._states.items()}

    def forget(self) -> None:
        """Drops the cached keys and values of earlier requests (their contexts). See
        contracts.Rollout.
        """
        if not self._engine.drop_cache():
            raise RunError(
                "rollout: vLLM did not reset its prefix cache, it would mix two versions"
            )

    def _stage(self, weights: Weights) -> dict[str, Tensor]:
        """The new tensors by digest, after checks that leave model and cache untouched.

        The manifest must name every memory tensor of the model: so a slot's router, w_in and w_out
        always come from one manifest, and half a module cannot be loaded.
        """
        manifest = weights.manifest

        def refuse(keys: list[str], what: str) -> None:
            if keys:
                more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
                raise RunError(f"weights {weights.name} v{weights.version}: {keys[0]}{more} {what}")

        refuse(
            sorted(manifest.keys() - self._shapes.keys()),
            "is in the manifest but not in this model",
        )
        refuse(sorted(self._shapes.keys() - manifest.keys()), "is missing from the manifest")
        refuse(
            sorted(weights.tensors.keys() - manifest.keys()), "was sent but is not in the manifest"
        )
        staged: dict[str, Tensor] = {}
        for key, value in weights.tensors.items():
            tensor = as_tensor(value)
            found = digest(tensor)
            if found != manifest[key]:
                refuse([key], f"has digest {found}, the manifest says {manifest[key]}")
            if found not in self._cache:
                staged[found] = tensor.clone()  # the sender may go on writing into its own
        known = self._cache | staged
        refuse(
            sorted(key for key, d in manifest.items() if d not in known),
            "was not sent and is not held here",
        )
        for key, d in manifest.items():  # also a held tensor may be of another kind than this key
            shape, dtype = self._shapes[key]
            if tuple(known[d].shape) != shape or known[d].dtype != dtype:
                refuse(
                    [key],
                    f"is {known[d].dtype} {list(known[d].shape)}, this model has "
                    f"{dtype} {list(shape)}",
                )
        return staged

    def _activate(self, name: str, state: _State) -> list[str]:
        """Makes the model compute `state` and returns the keys that were copied. Raises RunError if
        some are wrong.
        """
        if self._active == (name, state.version) and self._live == state.manifest:
            return []
        label = f"weights {name} v{state.version}"
        keys = [key for key, d in state.manifest.items() if self._live[key] != d]
        self._active = None
        if keys:
            self._live |= dict.fromkeys(keys, "")
            try:
                self._engine.write_memory({key: self._cache[state.manifest[key]] for key in keys})
            except Exception as error:  # a full /dev/shm, or whatever a worker process raised
                raise RunError(
                    f"{label}: could not be written into the model ({one_line(error)})"
                ) from error
            self.forget()  # cached keys and values are those of other weights
        self._engine.set_version(str(state.version))
        for rank, found in enumerate(self._engine.memory_digests(keys) if keys else []):
            wrong = [key for key in keys if found[key] != state.manifest[key]]
            if wrong:
                raise RunError(
                    f"{label}: {wrong[0]} did not arrive in the model (rank {rank}, "
                    f"{len(wrong)} tensors)"
                )
        self._live |= {key: state.manifest[key] for key in keys}
        self._active = (name, state.version)
        return keys

    def _probe_gap(self, weights: Weights) -> float:
        if not weights.probe_T:
            return 0.0
        label, expected = f"weights {weights.name} v{weights.version}", weights.probe_logprobs_T
        reason = self._engine.refusal(weights.probe_T)
        if not reason and len(expected) != len(weights.probe_T) - 1:
            reason = f"{len(expected)} log-probabilities for {len(weights.probe_T)} tokens"
        if reason:
            raise RunError(f"{label}: its probe prompt cannot be checked: {reason}")
        found = self._prompt_logprobs(weights.probe_T)
        gaps = [abs(a - b) for a, b in zip(found, expected, strict=True)]
        if not all(gap <= self._tolerance for gap in gaps):  # also catches NaN
            raise RunError(
                f"{label}: log-probabilities of the probe prompt differ by "
                f"{max(gaps):.2e} nats from the "
                f"sender's, checks.probe is {self._tolerance:.0e}"
            )
        return max(gaps, default=0.0)

    def _forget_unnamed(self) -> None:
        named = {d for state in self._states.values() for d in state.manifest.values()}
        self._cache = {d: t for d, t in self._cache.items() if d in named}

    def _switch(self, name: str, least: int | None = None) -> _State:
        state = self._states.get(name)
        if state is None or (least is not None and state.version < least):
            raise RunError(f"rollout: {name} v{least} is not loaded here, held are {self.held()}")
        self._activate(name, state)
        return state

    # ---- sampling

    def sample(
        self, requests_N: list[Request], name: str, version: int, how: Sampling
    ) -> list[Sample | Failure]:
        """One Sample or Failure per request, in order. The same call gives the same tokens, as long
        as no newer version has been loaded. See contracts.Rollout.

        Completions end at `how.stop_T` or `how.max_tokens` (cut to what fits), never at the
        checkpoint's own eos.
        """
        self.begin(requests_N, name, version, how)
        return self.more(math.inf)

    def begin(self, requests_N: list[Request], name: str, version: int, how: Sampling) -> None:
        """See contracts.Rollout. Raises RunError while another batch is under way."""
        if how.max_tokens < 1 or how.temperature < 0 or not 0 <= how.min_p <= 1:
            raise InputError(
                "sampling: max_tokens from 1, temperature from 0 and min_p in [0, "
                f"1] are allowed, got {how}"
            )
        if self._batch:
            raise RunError(
                f"rollout: {len(self._batch.requests_N)} requests to "
                f"{self._batch.name} are under way"
            )
        self._switch(name, version)
        ids_N = [request.context_T + request.prompt_T for request in requests_N]
        reason_N = [
            "the prompt is empty" if not r.prompt_T else self._engine.refusal(ids)
            for r, ids in zip(requests_N, ids_N, strict=True)
        ]
        fit = [n for n, reason in enumerate(reason_N) if not reason]
        params = [self._params(len(ids_N[n]), requests_N[n].seed, how) for n in fit]
        self._engine.start((ids_N[n] for n in fit), params)
        self._batch = _Batch(name, requests_N, reason_N, fit)

    def more(self, seconds: float) -> list[Sample | Failure] | None:
        """See contracts.Rollout. Raises RunError, and gives up the batch, when a version that was
        loaded meanwhile does not pass its probe.
        """
        batch, start = self._batch, time.perf_counter()
        if batch is None:
            raise RunError("rollout: no requests are under way")
        self._go_on(batch, seconds)
        self._seconds += time.perf_counter() - start
        if not batch.done:
            return None
        self._batch = None
        if batch.unprobed:
            try:
                self._probe_gap(batch.unprobed)
            except RunError:
                self._states.pop(batch.name, None)
                self._drop()
                raise
        result: list[Sample | Failure] = [Failure(reason, "rollout") for reason in batch.reasons_N]
        for n, output in zip(
            batch.fit, sorted(batch.outputs, key=lambda o: int(o.request_id)), strict=True
        ):
            result[n] = _sample(batch.requests_N[n], output, batch.name)
        self._tokens += sum(len(output.outputs[0].token_ids) for output in batch.outputs)
        return result

    def _go_on(self, batch: _Batch, seconds: float) -> None:
        """Steps the engine until the batch is done, or for so long; in a held version of its state,
        whatever a load that did not pass has left in the model.
        """
        until = time.perf_counter() + seconds
        try:
            if not batch.done:
                self._switch(batch.name)
            while not batch.done and time.perf_counter() < until:
                batch.outputs += self._engine.step()
        except RunError:
            self._batch = None
            raise

    def logprobs(self, ids_T: tuple[int, ...] | list[int], name: str = BASE) -> list[float]:
        """Log-probabilities (nats) of ids_T[1:] under the held state `name`. Raises RunError when
        they do not fit.
        """
        self._switch(name)
        reason = self._engine.refusal(ids_T)
        if reason:
            raise RunError(f"rollout: no log-probabilities: {reason}")
        return self._prompt_logprobs(ids_T)

    def stats(self) -> dict[str, float]:
        """Tokens sampled and the seconds they took since the start, and the process's largest
        resident size in MiB.
        """
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"tokens": float(self._tokens), "seconds": self._seconds, "peak_rss_mib": peak}

    def close(self) -> None:
        """Stops the engine behind the requests that are under way, which `more` still answers; no
        weights are held afterwards.
        """
        if self._batch:
            self._go_on(self._batch, math.inf)
        self._states.clear()
        self._cache.clear()
        self._engine.close()

    def _params(self, length: int, seed: int, how: Sampling) -> SamplingParams:
        return SamplingParams(
            max_tokens=min(how.max_tokens, self._engine.max_model_len - length),
            temperature=how.temperature,
            min_p=how.min_p,
            stop_token_ids=list(how.stop_T),
            ignore_eos=True,  # what ends a completion is the caller's choice: `stop_T`
            # costs 9 to 25 % speed; makes every sample replayable
            seed=seed if how.temperature > 0 else None,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )

    def _prompt_logprobs(self, ids_T: tuple[int, ...] | list[int]) -> list[float]:
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        [output] = self._engine.generate([ids_T], [params])
        return [
            entry[token].logprob
            for entry, token in zip(output.prompt_logprobs[1:], ids_T[1:], strict=True)
        ]


def _sample(request: Request, output: RequestOutput, name: str) -> Sample | Failure:
    completion = output.outputs[0]
    ids_T, logprobs_T = tuple(completion.token_ids), tuple(completion.logprobs.logprobs)
    versions_T = tuple(
        int(s.version) for s in completion.weight_versions for _ in range(s.start, s.end)
    )
    if completion.finish_reason not in ("stop", "length"):
        return Failure(f"vLLM ended the request with {completion.finish_reason}", "rollout")
    if not all(map(math.isfinite, logprobs_T)):
        return Failure("a sampled token has a log-probability that is not finite", "rollout")
    if not len(ids_T) == len(logprobs_T) == len(versions_T):
        counts = (
            f"{len(ids_T)} tokens, {len(logprobs_T)} log-probabilities, {len(versions_T)} versions"
        )
        return Failure(f"vLLM's answer does not fit together: {counts}", "rollout")
    return Sample(
        request.prompt_T,
        request.context_T,
        ids_T,
        logprobs_T,
        completion.finish_reason,
        request.seed,
        name,
        versions_T,
    )
