"""`sleep-rl serve` before vLLM is imported: resolve the checkpoint, check the address, set the
environment.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from actors.environment import ENGINE_ENVIRONMENT, built_for_cpu, cpu_environment
from sleep_rl.contracts.errors import InputError
from sleep_rl.model.shape import checkpoint_shape
from sleep_rl.runs.resolve import ResolvedModel, is_run, nights, resolve_model
from sleep_rl.session.console import Console

ONE_THREAD_HIDDEN = 512  # hidden units up to which one CPU thread is faster than several
QUIET_ENVIRONMENT = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker",
}
"""Environment variables that silence warnings about vLLM's own code; set only where unset."""


def serve(checkpoint: str, host: str, port: int, options: Sequence[str], follow: bool) -> NoReturn:
    """Serve a checkpoint until a signal arrives, and end the process (`sleep-rl serve`).

    `options`: of vLLM, name=value; `follow`: `checkpoint` is a run, whose new nights are swapped
    in. Raises InputError for what cannot be served, RunError when the engine fails.
    """
    for option in options:
        if "=" not in option:
            raise InputError(f"serve: expected options of vLLM as name=value, got {option}")
    model = _initial_model(checkpoint) if follow else resolve_model(checkpoint)
    console = Console()
    shape = checkpoint_shape(model.path)
    if not shape.memory:
        raise InputError(
            f"{model.path}: a sleep checkpoint is needed here, got a plain {shape.family} one"
        )
    _check_address(host, port)
    environment = ENGINE_ENVIRONMENT
    if (
        built_for_cpu()
        and shape.hidden <= ONE_THREAD_HIDDEN
        and not any(option.startswith("enforce") for option in options)
    ):
        environment = cpu_environment(1)
    for key, value in {**environment, **QUIET_ENVIRONMENT}.items():
        os.environ.setdefault(key, value)  # before anything imports torch: OpenMP reads it once
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # until vLLM reads VLLM_LOGGING_LEVEL
    console.say(f"starting vLLM with {model.path}")
    from actors.serving.server import serve as serve_with_vllm

    try:
        serve_with_vllm(model, host, port, options, follow, console.say)
    except BaseException as error:
        code = {InputError: 2, KeyboardInterrupt: 130}.get(type(error), 1)  # as cli.main
        atexit.register(_end, code)  # after cli.main has printed the error
        raise
    _end(0)


def _end(code: int) -> NoReturn:
    """End the process without Python's clean-up, in which vLLM's libraries print pages of warnings
    about leaks.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _initial_model(run: str) -> ResolvedModel:
    """Return the model with which a server that follows a run starts: its newest night, or before
    the first one its initial checkpoint.
    """
    folder = Path(run).absolute()
    if not is_run(folder):
        raise InputError(f"--follow: expected the folder of a run (with metrics.jsonl), got {run}")
    if nights(folder) or not (folder / "checkpoint" / "config.json").is_file():
        return resolve_model(run)
    return resolve_model(str(folder / "checkpoint"))


def _check_address(host: str, port: int) -> None:
    """Raise InputError when the address cannot be bound: before the engine is loaded, which takes
    long.
    """
    try:
        if not host:
            raise OSError("an empty host would mean every interface")
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot listen there: {reason}") from error
