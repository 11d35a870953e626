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
class _Batch:
    """Requests under way: all of them have begun in the state `name`."""

    name: str
    requests_N: list[Request]
    refusals_N: list[str]  # why a request cannot be answered; empty where it can
    accepted: list[int]  # indices of the requests that the engine was given, in order
    outputs: list[RequestOutput] = field(default_factory=list)  # of those that ended
    unprobed: Weights | None = None  # the version that was loaded meanwhile

    @property
    def done(self) -> bool:
        return len(self.outputs) == len(self.accepted)


class RolloutWorker:
    """Implements roles.Rollout with an engine and the weight states that it can compute.

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
        self.engine = Engine(
            checkpoint, dtype=dtype, options=engine, seed=seed, tensor_parallel=tensor_parallel
        )
        self.states = WeightStates(self.engine, probe_tolerance)
        self._batch: _Batch | None = None

    # ---- weights

    def load(self, weights: Weights) -> LoadReport:
        """Take a pushed version (roles.Rollout). See WeightStates.load for what is verified.

        A version older than the held one changes nothing. Requests under way (`begin`) are frozen
        meanwhile, and continue with the new weights, their cached keys and values computed anew.
        The report's seconds are those of this pause, the checks of what was sent included.
        """
        if self.states.is_outdated(weights):
            return self.states.load(weights)
        batch = self._batch
        if batch and batch.name != weights.name:
            self._advance(batch, math.inf)  # no request continues in another state than its own
        if batch is None or batch.done:
            return self.states.load(weights)
        # The probe's engine step would advance these requests, too. So it is checked behind them,
        # and their samples are held back until then.
        report = self.states.load(weights, probe=False)
        batch.unprobed = weights
        return report

    def held(self) -> dict[str, int]:
        """Return name -> version that can be sampled from now; `base`, the checkpoint's own memory,
        as version 0.
        """
        return self.states.versions()

    def forget(self) -> None:
        """Drop the cached keys and values of earlier requests, their contexts (roles.Rollout)."""
        self.engine.reset_prefix_cache()

    # ---- sampling

    def sample(
        self, requests_N: list[Request], name: str, version: int, sampling: Sampling
    ) -> list[Sample | Failure]:
        """Return one Sample or Failure per request, in order (roles.Rollout).

        The same call gives the same tokens, as long as no newer version has been loaded.
        Completions end at `sampling.stop_T` or `sampling.max_tokens` (cut to what fits), never at
        the checkpoint's own eos.
        """
        self.begin(requests_N, name, version, sampling)
        return self.more(math.inf)

    def logprobs(
        self, requests_N: list[Request], name: str, version: int
    ) -> list[tuple[float, ...] | Failure]:
        """Return the log-probabilities of each request's prompt_T (roles.Rollout). Raises RunError
        while samples are under way.
        """
        self._refuse_if_busy()
        self.states.activate(name, version)
        results: list[tuple[float, ...] | Failure] = []
        ids_N = [request.context_T + request.prompt_T for request in requests_N]
        refusals_N = [self._unscorable(request) for request in requests_N]
        scored = self.engine.prompt_logprobs(
            [ids for ids, refusal in zip(ids_N, refusals_N, strict=True) if not refusal]
        )
        for request, refusal in zip(requests_N, refusals_N, strict=True):
            if refusal:
                results.append(Failure(refusal, "rollout"))
            else:
                results.append(tuple(scored.pop(0)[len(request.context_T) - 1 :]))
        return results

    def _unscorable(self, request: Request) -> str:
        if not request.context_T or not request.prompt_T:
            return "log-probabilities need a context and a prompt of at least one token each"
        return self.engine.refusal(request.context_T + request.prompt_T)

    def _refuse_if_busy(self) -> None:
        if self._batch:
            raise RunError(
                f"rollout: {len(self._batch.requests_N)} requests to "
                f"{self._batch.name} are under way"
            )

    def begin(self, requests_N: list[Request], name: str, version: int, sampling: Sampling) -> None:
        """Queue requests for `more` (roles.Rollout). Raises RunError while others are under way."""
        if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 <= sampling.min_p <= 1:
            raise InputError(
                "sampling: max_tokens from 1, temperature from 0 and min_p in [0, "
                f"1] are allowed, got {sampling}"
            )
        self._refuse_if_busy()
        self.states.activate(name, version)
        ids_N = [request.context_T + request.prompt_T for request in requests_N]
        refusals_N = [self.engine.refusal(ids) for ids in ids_N]
        accepted = [n for n, refusal in enumerate(refusals_N) if not refusal]
        params = [
            self.engine.sampling_params(len(ids_N[n]), requests_N[n].seed, sampling)
            for n in accepted
        ]
        self.engine.enqueue((ids_N[n] for n in accepted), params)
        self._batch = _Batch(name, requests_N, refusals_N, accepted)

    def more(self, seconds: float) -> list[Sample | Failure] | None:
        """Sample for so long; return the results once all requests are done, None before
        (roles.Rollout).

        Raises RunError, and gives up the batch, when a version that was loaded meanwhile does not
        pass its probe.
        """
        batch = self._batch
        if batch is None:
            raise RunError("rollout: no requests are under way")
        self._advance(batch, seconds)
        if not batch.done:
            return None
        self._batch = None
        if batch.unprobed:
            try:
                self.states.activate(batch.name)  # another state may have been loaded since
                self.states.check_probe(batch.unprobed)
            except RunError:
                self.states.discard(batch.name)
                raise
        results: list[Sample | Failure] = [
            Failure(refusal, "rollout") for refusal in batch.refusals_N
        ]
        in_order = sorted(batch.outputs, key=lambda output: int(output.request_id))
        for n, output in zip(batch.accepted, in_order, strict=True):
            results[n] = _sample(batch.requests_N[n], output, batch.name)
        return results

    def _advance(self, batch: _Batch, seconds: float) -> None:
        """Step the engine until the batch is done, or for so long.

        In a held version of the batch's state, whatever a load that did not pass has left in the
        model.
        """
        deadline = time.perf_counter() + seconds
        try:
            if not batch.done:
                self.states.activate(batch.name)
            while not batch.done and time.perf_counter() < deadline:
                batch.outputs += self.engine.step()
        except RunError:
            self._batch = None
            raise

    def close(self) -> None:
        """Stop the engine behind the requests under way, which `more` still answers.

        No weights are held afterwards.
        """
        if self._batch:
            self._advance(self._batch, math.inf)
        self.states.clear()
        self.engine.close()


def _sample(request: Request, output: RequestOutput, name: str) -> Sample | Failure:
    """Return vLLM's output of one request as a Sample of the state `name`."""
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
