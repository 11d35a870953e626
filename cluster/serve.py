"""`sleep-rl serve` before vLLM is imported: find the checkpoint, try the address, set the
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

SMALL = 512  # hidden units up to which one thread is faster than several
QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker",
}
"""Variables of the engine's process that silence messages about vLLM's own code; other values that
are set already stay.
"""


def serve(checkpoint: str, host: str, port: int, options: Sequence[str], follow: bool) -> NoReturn:
    """`sleep-rl serve`: answer requests until a signal ends it, and end the process.

    `options`: of vLLM, name=value; `follow`: take up the new nights of the run in `checkpoint`.
    Raises InputError and RunError.
    """
    for option in options:
        if "=" not in option:
            raise InputError(f"serve: expected options of vLLM as name=value, got {option}")
    found = _start(checkpoint) if follow else resolve_model(checkpoint)
    console = Console()
    shape = checkpoint_shape(found.path)
    if not shape.memory:
        raise InputError(
            f"{found.path}: a sleep checkpoint is needed here, got a plain {shape.family} one"
        )
    _try(host, port)
    environment = ENGINE_ENVIRONMENT
    if (
        built_for_cpu()
        and shape.hidden <= SMALL
        and not any(option.startswith("enforce") for option in options)
    ):
        environment = cpu_environment(1)
    for key, value in {**environment, **QUIET}.items():
        os.environ.setdefault(key, value)  # before anything imports torch: OpenMP reads it once
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # until vLLM reads VLLM_LOGGING_LEVEL
    console.say(f"starting vLLM with {found.path}")
    from actors.serving.server import serve as answer

    try:
        answer(found, host, port, options, follow, console.say)
    except BaseException as error:
        code = {InputError: 2, KeyboardInterrupt: 130}.get(type(error), 1)  # as the command line's
        atexit.register(_end, code)  # behind the line that says why
        raise
    _end(0)


def _end(code: int) -> NoReturn:
    """End the process without Python's clean-up, which would print pages of what vLLM's libraries
    leak.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(run: str) -> ResolvedModel:
    """Return what a server that follows a run begins with: its newest night, or before the first
    one its untouched model.
    """
    folder = Path(run).absolute()
    if not is_run(folder):
        raise InputError(f"--follow: expected the folder of a run (with metrics.jsonl), got {run}")
    if nights(folder) or not (folder / "checkpoint" / "config.json").is_file():
        return resolve_model(run)
    return resolve_model(str(folder / "checkpoint"))


def _try(host: str, port: int) -> None:
    """Raise InputError when nobody can listen there: known now, and not after the engine has been
    loaded.
    """
    try:
        if not host:
            raise OSError("an empty host would mean every address")
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot be listened on: {reason}") from error
