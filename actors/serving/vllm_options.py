"""vLLM's server options from what the user gives as name=value."""

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
"""vLLM options that the program sets itself; nor can any data_parallel one be set: a night is
written into one engine.
"""
CPU_MAX_MODEL_LEN = 4096
"""Longest sequence of a server on CPU, in tokens, unless the user gives another one."""
CPU_SEQUENCES = 8
"""Sequences of that length for which the key-value cache on CPU has room, within CPU_CACHE_MIB."""
CPU_CACHE_MIB = (64, 2048)


def parse_options(
    checkpoint: str, host: str, port: int, name: str, options: Sequence[str]
) -> Namespace:
    """Return what vLLM's own parser makes of `options`, each name=value, over our defaults.

    `name`: the model's name in the API. The values true and false stand for a bare --name and
    --no-name. Raises InputError for a reserved option and for what vLLM refuses.
    """
    chosen = {}
    for option in options:
        key, _, value = option.partition("=")
        chosen[key.replace("-", "_")] = value
    for key in chosen:
        if key.partition(".")[0] in RESERVED or key.startswith("data_parallel"):
            raise InputError(f"serve: {key} is no option to set here, the program sets it itself")
    defaults = {
        "served_model_name": name,
        "uvicorn_log_level": "warning",
        "disable_uvicorn_access_log": "true",
        "use_tqdm_on_load": "false",
        # a web page must not ask a server on the loopback address
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
            f"serve: vLLM refuses its options: {one_line(error, limit=300)}"
        ) from error
    configure_logging_from_args(arguments)
    return arguments


class _Parser(FlexibleArgumentParser):
    """Raises ValueError where argparse would print and exit."""

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
    """Return options with which a server on CPU starts in seconds and takes little memory."""
    shape = parse_shape(checkpoints.read_config(checkpoint).to_dict(), checkpoint)
    max_model_len = min(shape.positions or CPU_MAX_MODEL_LEN, CPU_MAX_MODEL_LEN)
    wanted_bytes = CPU_SEQUENCES * max_model_len * shape.cached_values * 4
    least_mib, most_mib = CPU_CACHE_MIB
    cache_bytes = min(max(wanted_bytes, least_mib << 20), most_mib << 20)
    return {
        "dtype": "float32",
        "enforce_eager": "true",
        "max_model_len": str(max_model_len),
        "kv_cache_memory_bytes": str(cache_bytes),
        # see actors.engine: with it, seeds would kill the engine
        "enable_chunked_prefill": "false",
    }
