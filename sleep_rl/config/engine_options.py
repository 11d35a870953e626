"""Checks of the vLLM engine options in a config."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

CPU_ENGINE = {
    "enforce_eager": True,  # there are no CUDA graphs to capture
    "max_num_seqs": 256,
    "kv_cache_memory_bytes": 64 << 20,  # else vLLM takes a share of the memory of the machine
    "block_size": 32,  # vLLM's 128 leaves the prefix cache of short prompts unused
}
"""Engine options that only a CPU needs."""

DEEPEST = 8  # nested lists and mappings of an option
OWNED = {
    "model": "model.base",
    "tokenizer": "model.base",
    "dtype": "model.dtype",
    "seed": "run.seed",
    "tensor_parallel_size": "rollouts.tensor_parallel",
    "data_parallel_size": "rollouts.workers",
    "pipeline_parallel_size": "rollouts.tensor_parallel",
    "distributed_executor_backend": "rollouts.tensor_parallel",
    "logprobs_mode": None,
    "worker_extension_cls": None,
    "worker_cls": None,
    "hf_overrides": None,
    "load_format": None,
    "trust_remote_code": None,
    "model_impl": None,
    "quantization": None,
    "runner": None,
    "skip_tokenizer_init": None,
}
"""vLLM option that the program sets itself -> the config key to use instead, if any."""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_count_or_null(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_share_or_null(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value <= 1)


CHECKED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_model_len": ("an integer >= 1", _is_count),
    "max_num_seqs": ("an integer >= 1", _is_count),
    "kv_cache_memory_bytes": ("an integer >= 1 or null", _is_count_or_null),
    "gpu_memory_utilization": ("a number above 0 and at most 1, or null", _is_share_or_null),
}
"""Option that `plan` reads -> (description of allowed values, predicate)."""


def engine_fault(options: dict) -> tuple[str, Any, str] | None:
    """Return (option, value, message) of the first invalid option; None if all are valid.

    Invalid are options of OWNED, values that are not plain data, and invalid values of options of
    CHECKED. The message is to be followed by "got" and the value.
    """
    for name, value in options.items():
        if name in OWNED:
            instead = f"use {OWNED[name]}" if OWNED[name] else "the program sets it itself"
            return name, value, f"cannot be set here, {instead};"
        if not _is_plain(value):
            what = (
                "expected finite numbers, text, and lists and mappings of them, nested at most "
                f"{DEEPEST} times,"
            )
            return name, value, what
        if name in CHECKED and not CHECKED[name][1](value):
            return name, value, f"expected {CHECKED[name][0]},"
    return None


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth < DEEPEST and all(_is_plain(each, depth + 1) for each in inner)
    return not isinstance(value, float) or math.isfinite(value)


def engine_options(options: dict, gpus: float) -> dict:
    """Return vLLM options for an engine on `gpus` GPUs; on a CPU those it needs are added."""
    return dict(options) if gpus else {**CPU_ENGINE, **options}
