"""A vLLM engine: token ids in, outputs out, memory tensors written in place.

Suffixes: `_T` tokens of one sequence, `_N` requests of one call.
"""

# vLLM reads part of its environment at import, so it is set above the imports:
# ruff: noqa: E402

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from actors.environment import ENGINE_ENVIRONMENT

for _key, _value in ENGINE_ENVIRONMENT.items():
    os.environ.setdefault(_key, _value)

from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm import LLM, RequestOutput, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from actors.memory_access import MemoryAccess, shared_file
from actors.plugin import register
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.contracts.records import Sampling
from sleep_rl.model.checkpoints import read_config

R = TypeVar("R")


class EngineShutdown:
    """Shuts the vLLM engines of one process down together.

    Shutting down one engine destroys torch process groups that all engines of the process share.
    So closed engines are kept, and all are shut down when the last open one is closed. One instance
    per process: ENGINE_SHUTDOWN.
    """

    def __init__(self) -> None:
        self._open: list[LLM] = []
        self._closed: list[LLM] = []

    def register(self, llm: LLM) -> None:
        """Add an engine that has started."""
        self._open.append(llm)

    def release(self, llm: LLM) -> None:
        """Mark an engine as closed; shut all engines down if it was the last open one."""
        self._open.remove(llm)
        self._closed.append(llm)
        if not self._open:
            while self._closed:
                self._closed.pop().llm_engine.engine_core.shutdown()


ENGINE_SHUTDOWN = EngineShutdown()


class Engine:
    """A running vLLM engine: open from its construction until `close`.

    Arguments: `options`, keyword arguments of vllm.LLM, which override the defaults of
    `_llm_options`; `seed`, of the engine (requests have their own); `tensor_parallel`, number of
    GPUs; `memory`, whether the checkpoint must have memory levels. Raises InputError when they are
    missing, and when vLLM does not accept the checkpoint or the options.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        dtype: str,
        options: dict,
        seed: int,
        tensor_parallel: int = 1,
        memory: bool = True,
    ):
        if memory and not getattr(read_config(checkpoint), "memory_levels", None):
            raise InputError(
                f"rollout: a checkpoint with memory levels is needed, got {checkpoint}"
            )
        register()
        try:
            self._llm: LLM | None = LLM(
                model=checkpoint,
                dtype=dtype,
                seed=seed,
                tensor_parallel_size=tensor_parallel,
                **_llm_options(options, memory),
            )
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise InputError(
                f"rollouts.engine (critics.engine): vLLM cannot serve {checkpoint} "
                f"with {options}: {one_line(error, limit=300)}"
            ) from error
        ENGINE_SHUTDOWN.register(self._llm)
        config = self._llm.llm_engine.model_config
        self.max_model_len: int = config.max_model_len
        self.vocab_size: int = config.get_vocab_size()
        self.tensors_by_file = (
            tensor_parallel > 1 or os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0"
        )
        """Whether vLLM's workers run in other processes, so that tensors are passed in a file."""
        self.failure = ""
        """Why vLLM failed; empty if it has not. A failed engine is not used again: its unfinished
        requests would be returned with later ones.
        """

    @property
    def llm(self) -> LLM:
        """Return vLLM's own object. Raises RunError after `close`."""
        if self._llm is None:
            raise RunError("the vLLM engine is closed")
        return self._llm

    # ---- requests

    def invalid_prompt(self, ids_T: Sequence[int]) -> str:
        """Return why no token can be sampled after these ids; empty if one can."""
        if not ids_T:
            return "the prompt is empty"
        if len(ids_T) + 1 > self.max_model_len:
            return (
                f"{len(ids_T)} tokens and a new one do not fit into max_model_len "
                f"{self.max_model_len}"
            )
        outside = next((i for i in ids_T if not 0 <= i < self.vocab_size), None)
        if outside is not None:
            return f"token id {outside} is outside the vocabulary of {self.vocab_size}"
        return ""

    def sampling_params(self, prompt_length: int, seed: int, sampling: Sampling) -> SamplingParams:
        """Return vLLM's parameters for one request; max_tokens is reduced to max_model_len.

        Raises InputError for stop strings in an engine without a tokenizer (`skip_tokenizer_init`).
        """
        if sampling.stop and self.llm.llm_engine.model_config.skip_tokenizer_init:
            raise InputError(
                "rollout: an engine with a tokenizer is needed for stop strings (task.stop), got "
                "one without"
            )
        return SamplingParams(
            max_tokens=min(sampling.max_tokens, self.max_model_len - prompt_length),
            temperature=sampling.temperature,
            min_p=sampling.min_p,
            stop_token_ids=list(sampling.stop_T),
            ignore_eos=True,  # only `stop_T` and `stop` end a completion
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            # makes each sample reproducible, and costs 9 to 25 % of the speed
            seed=seed if sampling.temperature > 0 else None,
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
        )

    def generate(
        self,
        prompts_N: Iterable[Iterable[int]],
        params_N: list[SamplingParams],
        adapters_N: list[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Generate from all prompts as one batch, each with its LoRA adapter if it has one.

        The prompts must be valid (`invalid_prompt`). Raises RunError when vLLM fails or has failed
        before.
        """
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompts_N]
        if not prompts:
            return []
        return self._guarded(
            lambda: self.llm.generate(prompts, params_N, use_tqdm=False, lora_request=adapters_N)
        )

    def enqueue(self, prompts_N: Iterable[Iterable[int]], params_N: list[SamplingParams]) -> None:
        """Queue valid prompts for `step`. Raises as `generate`."""
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompts_N]
        if prompts:
            self._guarded(lambda: self.llm.enqueue(prompts, params_N, use_tqdm=False))

    def step(self) -> list[RequestOutput]:
        """Run one engine step, about one token per queued prompt; return the finished outputs.

        The integers in `request_id` are in the order of `enqueue`. Raises as `generate`.
        """
        return [output for output in self._guarded(self.llm.llm_engine.step) if output.finished]

    def prompt_logprobs(
        self, ids_N: Sequence[Sequence[int]], starts_N: Sequence[int] | None = None
    ) -> list[list[float]]:
        """Return the log-probabilities (nats) of ids_T[start:] per prompt. Raises as `generate`.

        `starts_N`: from 1; tokens before a start may come from the prefix cache. None: 1 for every
        prompt, and the cache is not read.
        """
        if starts_N is None:
            outputs = self.generate(ids_N, [_scoring_params(cached=False)] * len(ids_N))
            return [_scored(output, 1) for output in outputs]
        outputs = self.generate(ids_N, [_scoring_params(cached=True)] * len(ids_N))
        scored_N = [
            None if output.num_cached_tokens >= start else _scored(output, start)
            for output, start in zip(outputs, starts_N, strict=True)
        ]
        # The cache also had scored tokens, which vLLM does not score then.
        again = [n for n, scored in enumerate(scored_N) if scored is None]
        outputs = self.generate(
            [ids_N[n] for n in again], [_scoring_params(cached=False)] * len(again)
        )
        for n, output in zip(again, outputs, strict=True):
            scored_N[n] = _scored(output, starts_N[n])
        return scored_N

    def _guarded(self, call: Callable[[], R]) -> R:
        if self.failure:
            raise RunError(f"vLLM failed earlier: {self.failure}")
        try:
            return call()
        except Exception as error:
            self.failure = one_line(error)
            raise RunError(f"vLLM failed: {self.failure}") from error

    # ---- weights

    def reset_prefix_cache(self) -> None:
        """Drop all cached keys and values, also those of running requests. Raises RunError if vLLM
        does not.
        """
        if not self.llm.llm_engine.reset_prefix_cache(reset_running_requests=True):
            raise RunError(
                "rollout: vLLM did not reset its prefix cache, which would mix two versions"
            )

    def set_weight_version(self, label: str) -> None:
        """Set the version label of the tokens that are sampled next."""
        self.llm.llm_engine.set_weight_version(label)

    def write_memory(self, tensors: dict[str, Tensor]) -> None:
        """Copy memory tensors into the model of every rank, by memory key."""
        if not self.tensors_by_file:
            self.llm.collective_rpc("memory_write", args=(tensors,))
            return
        with shared_file() as path:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
            self.llm.collective_rpc("memory_write", kwargs={"path": path})

    def read_memory(self) -> dict[str, Tensor]:
        """Return CPU copies of the first rank's memory tensors, by memory key."""
        if not self.tensors_by_file:
            return self.llm.collective_rpc("memory_read")[0]
        with shared_file() as path:
            self.llm.collective_rpc("memory_read", kwargs={"path": path})
            return load_file(path)

    def memory_digests(self, keys: list[str]) -> list[dict[str, str]]:
        """Return memory key -> digest of the model's tensor, one dictionary per rank."""
        return self.llm.collective_rpc("memory_digests", args=(keys,))

    def add_adapter(self, adapter: LoRARequest) -> None:
        """Load a LoRA adapter. Raises RunError with vLLM's reason and stays usable."""
        try:
            accepted = self.llm.llm_engine.add_lora(adapter)
        except Exception as error:  # vLLM raises whatever its loader raises
            raise RunError(one_line(error)) from error
        if not accepted:
            raise RunError("vLLM rejected it")

    def remove_adapter(self, adapter: LoRARequest) -> None:
        """Unload a LoRA adapter."""
        self.llm.llm_engine.remove_lora(adapter.lora_int_id)

    def close(self) -> None:
        """Close the engine (see EngineShutdown). Idempotent."""
        if self._llm is not None:
            llm = self._llm
            self._llm = None
            ENGINE_SHUTDOWN.release(llm)


def _llm_options(options: dict, memory: bool) -> dict:
    """Return keyword arguments of vllm.LLM: defaults, overridden by `options`, then fixed ones."""
    chosen = {
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **options,
    }
    if current_platform.is_cpu():
        # vLLM 0.32 rewinds a request's random generator after a partial prefill, which CPU
        # generators cannot do: the first batch of long prompts with seeds would kill the engine.
        chosen.setdefault("enable_chunked_prefill", False)
    chosen |= {"trust_remote_code": False, "load_format": "safetensors"}
    if memory:
        chosen["worker_extension_cls"] = f"{MemoryAccess.__module__}.{MemoryAccess.__name__}"
    return chosen


def _scoring_params(*, cached: bool) -> SamplingParams:
    """Return parameters to score a prompt's own tokens; `cached`: but those in the prefix cache."""
    return SamplingParams(
        max_tokens=1,
        temperature=0,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        skip_reading_prefix_cache=not cached,
    )


def _scored(output: RequestOutput, start: int) -> list[float]:
    """Return the log-probabilities of a prompt's tokens from `start`, which are its last ones."""
    scored = output.prompt_logprobs
    return [scored.logprobs[scored.start_indices[t]] for t in range(start, len(scored))]
