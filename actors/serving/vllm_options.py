"""Parse the user's options of vLLM's server, given as name=value."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from actors.memory_access import MemoryAccess
from actors.serving.night_routes import NightMiddleware
from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.model import checkpoints
from sleep_rl.model.shape import parse_shape

RESERVED = (
    "model",
    "model_tag",
    "tokenizer",
    "host",
    "port",
    "uds",
    "config",
    "headless",
    "grpc",
    "worker_cls",
    "worker_extension_cls",
    "api_server_count",
    "skip_tokenizer_init",
    "root_path",
)
"""Options of vLLM that users cannot set, nor any data_parallel one: a swap writes into one
engine.
"""
CPU_MAX_MODEL_LEN = 4096
"""Default of max_model_len on CPU, in tokens."""
CPU_SEQUENCES = 8
"""Sequences of max_model_len tokens for which the default key-value cache on CPU has space."""
CPU_CACHE_MIB = (64, 2048)
"""Bounds of the default key-value cache on CPU."""


def parse_options(
    checkpoint: str, host: str, port: int, name: str, options: Sequence[str]
) -> Namespace:
    """Return the arguments of vLLM's parser for `options`, each name=value, which override the
    defaults chosen here.

    `name`: the model's name in the API. The values true and false become the flags --name and
    --no-name. Raises InputError for a reserved option, and for what vLLM rejects.
    """
    chosen = {}
    for option in options:
        key, _, value = option.partition("=")
        chosen[key.replace("-", "_")] = value
    for key in chosen:
        if key.partition(".")[0] in RESERVED or key.startswith("data_parallel"):
            raise InputError(f"serve: {key} cannot be set, the program sets it itself")
    defaults = {
        "served_model_name": name,
        "uvicorn_log_level": "warning",
        "disable_uvicorn_access_log": "true",
        "use_tqdm_on_load": "false",
        # no web page may send requests to a server on the loopback address
        "allowed_origins": "[]",
    }
    if current_platform.is_cpu():
        defaults |= _cpu_defaults(checkpoint)
    line = [
        f"--model={checkpoint}",
        f"--host={host}",
        f"--port={port}",
        f"--worker-extension-cls={MemoryAccess.__module__}.{MemoryAccess.__qualname__}",
        f"--middleware={NightMiddleware.__module__}.{NightMiddleware.__qualname__}",
    ]
    line += [_flag(key, value) for key, value in (defaults | chosen).items()]
    try:
        arguments = make_arg_parser(_Parser(allow_abbrev=False)).parse_args(line)
        validate_parsed_serve_args(arguments)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"serve: vLLM rejects its options: {one_line(error, limit=300)}"
        ) from error
    configure_logging_from_args(arguments)
    return arguments


class _Parser(FlexibleArgumentParser):
    """Raises ValueError instead of printing the error and exiting."""

    def error(self, message: str) -> None:
        raise ValueError(message)


def _flag(key: str, value: str) -> str:
    name = key.replace("_", "-")
    if value.lower() == "true":
        return f"--{name}"
    if value.lower() == "false":
        return f"--no-{name}"
    return f"--{name}={value}"


def _cpu_defaults(checkpoint: str) -> dict[str, str]:
    """Return default options on CPU: a start within seconds, and little memory."""
    shape = parse_shape(checkpoints.read_config(checkpoint).to_dict(), checkpoint)
    max_model_len = min(shape.positions or CPU_MAX_MODEL_LEN, CPU_MAX_MODEL_LEN)
    needed_bytes = CPU_SEQUENCES * max_model_len * shape.cached_values * 4
    min_mib, max_mib = CPU_CACHE_MIB
    cache_bytes = min(max(needed_bytes, min_mib << 20), max_mib << 20)
    return {
        "dtype": "float32",
        "enforce_eager": "true",
        "max_model_len": str(max_model_len),
        "kv_cache_memory_bytes": str(cache_bytes),
        # with it, seeds would kill the engine: see actors.engine
        "enable_chunked_prefill": "false",
    }
