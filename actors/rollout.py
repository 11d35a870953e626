"""The rollout worker: samples from named weight versions of one vLLM engine (roles.Rollout).

Suffixes: `_T` tokens of one sequence, `_N` requests of one call.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from vllm import RequestOutput

from actors.engine import Engine
from actors.weight_states import WeightStates
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import LoadReport, Request, Sample, Sampling, Weights


@dataclass
class _RequestsInFlight:
    """Requests in flight; all of them sample from the state `name`."""

    name: str
    requests_N: list[Request]
    errors_N: list[str]  # why a request is invalid; empty where it is valid
    accepted: list[int]  # indices of the valid requests, in the order of `enqueue`
    outputs: list[RequestOutput] = field(default_factory=list)  # of finished requests
    unprobed: Weights | None = None  # a version loaded meanwhile, whose probe is still unchecked

    def withhold(self, weights: Weights) -> None:
        """Withhold the results until the probe of `weights`, loaded meanwhile, has passed."""
        self.unprobed = weights

    @property
    def done(self) -> bool:
        return len(self.outputs) == len(self.accepted)


class RolloutWorker:
    """Implements roles.Rollout with a vLLM engine and named weight states.

    Arguments: `checkpoint`, the folder of a sleep checkpoint; `dtype`, of weights and activations;
    `engine`, options of vllm.LLM; `seed`, of the engine (each request has its own);
    `tensor_parallel`, GPUs of the engine; `probe_tolerance`, largest log-probability difference on
    a push's probe prompt, in nats. Raises InputError when the checkpoint has no memory or vLLM does
    not accept it.
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
        self.engine = Engine(
            checkpoint, dtype=dtype, options=engine, seed=seed, tensor_parallel=tensor_parallel
        )
        self.states = WeightStates(self.engine, probe_tolerance)
        self._in_flight: _RequestsInFlight | None = None

    # ---- weights

    def load(self, weights: Weights) -> LoadReport:
        """Load and verify a pushed version (roles.Rollout, WeightStates.load).

        A version older than the held one changes nothing. Requests in flight (`begin`) are paused,
        and continue with the new weights and recomputed keys and values. The report's `seconds` are
        the length of this pause, including the checks.
        """
        if self.states.is_outdated(weights):
            return self.states.load(weights)
        in_flight = self._in_flight
        if in_flight and in_flight.name != weights.name:
            self._advance(in_flight, math.inf)  # no request continues in another state than its own
        if in_flight is None or in_flight.done:
            return self.states.load(weights)
        # The engine step of the probe would advance these requests, too. So the probe is checked
        # after them, and their samples are returned only if it passes.
        report = self.states.load(weights, probe=False)
        in_flight.withhold(weights)
        return report

    def held(self) -> dict[str, int]:
        """Return state name -> version that can be sampled from (roles.Rollout); version 0 of
        CHECKPOINT is the checkpoint's own memory.
        """
        return self.states.versions()

    def drop_caches(self) -> None:
        """Reset the prefix cache (roles.Rollout)."""
        self.engine.reset_prefix_cache()

    # ---- sampling

    def sample(
        self, requests_N: list[Request], name: str, version: int, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order (roles.Rollout).

        The same call returns the same tokens until a newer version is loaded. Completions end at
        `sampling.stop_T`, with a string of `sampling.stop`, or after `sampling.max_tokens` (reduced
        to max_model_len), never at the checkpoint's own eos.
        """
        self.begin(requests_N, name, version, sampling)
        return self.more(math.inf)

    def logprobs(
        self, requests_N: list[Request], name: str, version: int
    ) -> list[tuple[float, ...] | Failure]:
        """Return the log-probabilities of each request's prompt_T, in nats, or a Failure
        (roles.Rollout). Raises RunError while requests are in flight.
        """
        self._check_idle()
        self.states.activate(name, version)
        results: list[tuple[float, ...] | Failure] = []
        errors_N = [self._invalid_scoring(request) for request in requests_N]
        valid = [r for r, error in zip(requests_N, errors_N, strict=True) if not error]
        scored = self.engine.prompt_logprobs(
            [request.context_T + request.prompt_T for request in valid],
            [len(request.context_T) for request in valid],
        )
        for error in errors_N:
            results.append(Failure(error, "rollout") if error else tuple(scored.pop(0)))
        return results

    def _invalid_scoring(self, request: Request) -> str:
        """Return why `logprobs` cannot score a request; empty if it can."""
        if not request.context_T or not request.prompt_T:
            return "log-probabilities need a context and a prompt of at least one token each"
        return self.engine.invalid_prompt(request.context_T + request.prompt_T)

    def _check_idle(self) -> None:
        """Raise RunError while requests are in flight."""
        if self._in_flight:
            raise RunError(
                f"rollout: {len(self._in_flight.requests_N)} requests to "
                f"{self._in_flight.name} are in flight"
            )

    def begin(self, requests_N: list[Request], name: str, version: int, sampling: Sampling) -> None:
        """Queue requests for `more` (roles.Rollout). Raises RunError while others are in flight."""
        if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 <= sampling.min_p <= 1:
            raise InputError(
                "sampling: max_tokens from 1, temperature from 0 and min_p in [0, "
                f"1] are allowed, got {sampling}"
            )
        self._check_idle()
        self.states.activate(name, version)
        ids_N = [request.context_T + request.prompt_T for request in requests_N]
        errors_N = [self.engine.invalid_prompt(ids) for ids in ids_N]
        accepted = [n for n, error in enumerate(errors_N) if not error]
        params = [
            self.engine.sampling_params(len(ids_N[n]), requests_N[n].seed, sampling)
            for n in accepted
        ]
        self.engine.enqueue((ids_N[n] for n in accepted), params)
        self._in_flight = _RequestsInFlight(name, requests_N, errors_N, accepted)

    def more(self, seconds: float) -> list[Sample | Failure] | None:
        """Sample for `seconds`; return the results once all requests are done, before that None
        (roles.Rollout).

        Raises RunError, and drops the requests, when a version that was loaded meanwhile fails its
        probe.
        """
        in_flight = self._in_flight
        if in_flight is None:
            raise RunError("rollout: no requests are in flight")
        self._advance(in_flight, seconds)
        if not in_flight.done:
            return None
        self._in_flight = None
        if in_flight.unprobed:
            try:
                self.states.activate(in_flight.name)  # another state may be active
                self.states.check_probe(in_flight.unprobed)
            except RunError:
                self.states.discard(in_flight.name)
                raise
        results: list[Sample | Failure] = [
            Failure(error, "rollout") for error in in_flight.errors_N
        ]
        in_order = sorted(in_flight.outputs, key=lambda output: int(output.request_id))
        for n, output in zip(in_flight.accepted, in_order, strict=True):
            results[n] = _sample(in_flight.requests_N[n], output, in_flight.name)
        return results

    def _advance(self, in_flight: _RequestsInFlight, seconds: float) -> None:
        """Step the engine until the requests are done, or for `seconds`.

        Activates their state first: a failed load may have left other weights in the model.
        """
        deadline = time.perf_counter() + seconds
        try:
            if not in_flight.done:
                self.states.activate(in_flight.name)
            while not in_flight.done and time.perf_counter() < deadline:
                in_flight.outputs.extend(self.engine.step())
        except RunError:
            self._in_flight = None
            raise

    def close(self) -> None:
        """Finish the requests in flight, whose results `more` still returns, and stop the engine.
        No weights are held afterwards.
        """
        if self._in_flight:
            self._advance(self._in_flight, math.inf)
        self.states.clear()
        self.engine.close()


def _sample(request: Request, output: RequestOutput, name: str) -> Sample | Failure:
    """Return vLLM's output of one request as a Sample of state `name`, or a Failure."""
    completion = output.outputs[0]
    ids_T = tuple(completion.token_ids)
    logprobs_T = tuple(completion.logprobs.logprobs)
    versions_T = tuple(
        int(span.version)
        for span in completion.weight_versions
        for _ in range(span.start, span.end)
    )
    if completion.finish_reason not in ("stop", "length"):
        return Failure(f"vLLM ended the request with {completion.finish_reason}", "rollout")
    if not all(map(math.isfinite, logprobs_T)):
        return Failure("a sampled token has a log-probability that is not finite", "rollout")
    if not len(ids_T) == len(logprobs_T) == len(versions_T):
        counts = (
            f"{len(ids_T)} tokens, {len(logprobs_T)} log-probabilities, {len(versions_T)} versions"
        )
        return Failure(f"vLLM's output is inconsistent: {counts}", "rollout")
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
