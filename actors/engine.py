"""One vLLM engine as workers use it: token ids in, outputs out, and memory tensors that are written
in place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from actors.environment import ENGINE_ENVIRONMENT

for _key, _value in ENGINE_ENVIRONMENT.items():
    os.environ.setdefault(_key, _value)  # vLLM reads some of it at import

from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm import LLM, RequestOutput, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from actors.plugin import register
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.model.memory import tensors_of, write_tensors
from sleep_rl.model.tensor_digest import digest

R = TypeVar("R")
# where a node's processes exchange tensors; the temporary folder where there is none
SHARED_MEMORY = "/dev/shm"


class MemoryAccess:
    """Mixed into vLLM's worker (`worker_extension_cls`): reads and writes the memory tensors of its
    model.

    Keys are those of `sleep_rl.model.memory.tensors_of`. Tensors come and go directly where the worker
    lives in the caller's process, and through a safetensors file otherwise: vLLM cannot send
    tensors as arguments.
    """

    def memory_write(self, tensors: dict[str, Tensor] | None = None, path: str = "") -> None:
        """Copies in place, so that addresses in captured CUDA graphs stay valid."""
        write_tensors(
            self.model_runner.get_model(), load_file(path) if tensors is None else tensors
        )

    def memory_read(self, path: str = "") -> dict[str, Tensor]:
        """CPU copies of all memory tensors; with `path` the first rank writes them there and
        nothing is returned.
        """
        copies = {
            k: v.to("cpu", copy=True) for k, v in tensors_of(self.model_runner.get_model()).items()
        }
        if not path:
            return copies
        if self.rank == 0:
            save_file(copies, path)
        return {}

    def memory_digests(self, keys: list[str]) -> dict[str, str]:
        """Digests of what lies in the model now."""
        own = tensors_of(self.model_runner.get_model())
        return {key: digest(own[key]) for key in keys}


class Engine:
    """A running vLLM engine. Raises InputError when vLLM does not accept the checkpoint or the
    options.
    """

    _open: list[Engine] = []
    _parked: list[LLM] = []

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
        register()
        chosen = {
            "enable_prefix_caching": True,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **options,
        }
        if current_platform.is_cpu():
            # vLLM 0.32 rewinds a request's random generator after a partial prefill, which CPU
            # generators cannot do:
            # the first batch of long prompts with seeds would kill the engine.
            chosen.setdefault("enable_chunked_prefill", False)
        chosen |= {"trust_remote_code": False, "load_format": "safetensors"}
        if memory:
            chosen["worker_extension_cls"] = f"{__name__}.{MemoryAccess.__name__}"
        try:
            self.llm = LLM(
                model=checkpoint,
                dtype=dtype,
                seed=seed,
                tensor_parallel_size=tensor_parallel,
                **chosen,
            )
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            # the first line alone is often only "1 validation error for ..."
            why = one_line(error, limit=300)
            raise InputError(
                f"rollouts.engine (critics.engine): vLLM cannot serve {checkpoint} "
                f"with {options}: {why}"
            ) from error
        config = self.llm.llm_engine.model_config
        self.max_model_len, self.vocab_size = config.max_model_len, config.get_vocab_size()
        self._by_file = tensor_parallel > 1 or os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0"
        self._broken = ""
        Engine._open.append(self)

    def refusal(self, ids_T: tuple[int, ...] | list[int]) -> str:
        """Why the engine cannot continue these ids by at least one token; empty when it can."""
        if not ids_T:
            return "the prompt is empty"
        if len(ids_T) + 1 > self.max_model_len:
            return f"{len(ids_T)} tokens and a new one do not fit into max_model_len {self.max_model_len}"
        outside = next((i for i in ids_T if not 0 <= i < self.vocab_size), None)
        return (
            ""
            if outside is None
            else f"token id {outside} is outside the vocabulary of {self.vocab_size}"
        )

    def generate(
        self,
        prompts_N: Iterable[Iterable[int]],
        params_N: list[SamplingParams],
        adapters_N: list[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        """Runs all prompts as one batch, each through its LoRA adapter if it has one. The caller
        has checked them with `refusal`.

        Raises RunError when vLLM fails, and from then on: half-run requests would come back with
        later ones.
        """
        prompts = [{"prompt_token_ids": list(ids)} for ids in prompts_N]
        return self._sound(
            lambda: (
                self.llm.generate(prompts, params_N, use_tqdm=False, lora_request=adapters_N)
                if prompts
                else []
            )
        )

    def start(self, prompts_N: Iterable[Iterable[int]], params_N: list[SamplingParams]) -> None:
        """Queues prompts, checked like those of `generate`; `step` goes on with them. Raises what
        `generate` raises.
        """
        if prompts := [{"prompt_token_ids": list(ids)} for ids in prompts_N]:
            self._sound(lambda: self.llm.enqueue(prompts, params_N, use_tqdm=False))

    def step(self) -> list[RequestOutput]:
        """One step of all queued prompts, a token or so for each. Returns those that ended; the
        numbers in `request_id` are in the order of `start`. Raises what `generate` raises.
        """
        return [output for output in self._sound(self.llm.llm_engine.step) if output.finished]

    def _sound(self, call: Callable[[], R]) -> R:
        if self._broken:
            raise RunError(f"vLLM failed earlier: {self._broken}")
        try:
            return call()
        except Exception as error:
            self._broken = one_line(error)
            raise RunError(f"vLLM failed: {self._broken}") from error

    def drop_cache(self) -> bool:
        """Drops all cached keys and values, of running requests too. False when vLLM refuses."""
        return self.llm.llm_engine.reset_prefix_cache(reset_running_requests=True)

    def set_version(self, label: str) -> None:
        """Labels tokens from now on."""
        self.llm.llm_engine.set_weight_version(label)

    def write_memory(self, tensors: dict[str, Tensor]) -> None:
        if not self._by_file:
            self.llm.collective_rpc("memory_write", args=(tensors,))
            return
        with shared_file() as path:
            save_file({k: v.contiguous() for k, v in tensors.items()}, path)
            self.llm.collective_rpc("memory_write", kwargs={"path": path})

    def read_memory(self) -> dict[str, Tensor]:
        if not self._by_file:
            return self.llm.collective_rpc("memory_read")[0]
        with shared_file() as path:
            self.llm.collective_rpc("memory_read", kwargs={"path": path})
            return load_file(path)

    def memory_digests(self, keys: list[str]) -> list[dict[str, str]]:
        """One answer per tensor parallel rank."""
        return self.llm.collective_rpc("memory_digests", args=(keys,))

    def close(self) -> None:
        """Stops the engine. Shutting one down destroys process groups that all engines of a process
        share, so the engines of a process really stop together with the last of them.
        """
        if self not in Engine._open:
            return
        Engine._open.remove(self)
        Engine._parked.append(self.llm)
        del self.llm
        if not Engine._open:
            while Engine._parked:
                Engine._parked.pop().llm_engine.engine_core.shutdown()


@contextmanager
def shared_file() -> Iterator[str]:
    """Path of a file in shared memory that is deleted when the block ends."""
    folder = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.TemporaryDirectory(prefix="sleep_rl-", dir=folder) as name:
        yield os.path.join(name, "memory.safetensors")
