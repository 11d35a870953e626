"""vLLM's OpenAI-compatible server for a sleep checkpoint, with the routes of `night_routes`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http, setup_server

from actors.plugin import register
from actors.serving.night_routes import night_routes
from actors.serving.vllm_options import parse_options
from actors.serving.weight_swap import NightSwapper
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.model import checkpoints
from sleep_rl.runs.resolve import ResolvedModel
from sleep_rl.text.loading import write_serving_ends

SSL_OPTIONS = (
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_ciphers",
    "enable_ssl_refresh",
)
Log = Callable[[str], None]
"""Prints one line for the user."""


def serve(
    model: ResolvedModel, host: str, port: int, options: Sequence[str], follow: bool, log: Log
) -> None:
    """Serve `model` until SIGINT or SIGTERM.

    `options`: of vLLM, as name=value; `follow`: swap in each new night of the run; `log`: prints a
    line. The variables of actors.environment must be set before this module is imported. Raises
    InputError for a checkpoint, an option or an address that vLLM rejects, RunError when the engine
    dies or its memory cannot be restored.
    """
    # until the server installs its own handlers: asyncio's would wait for vLLM
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    register()
    with tempfile.TemporaryDirectory(prefix="sleep_rl-serve-") as folder:
        checkpoint = checkpoints.expand(
            model.path, os.path.join(folder, "model"), checkpoints.levels_of(model.path)
        )
        if checkpoint != model.path:  # else it was exported, which adds the ends
            vocab_size = checkpoints.read_config(checkpoint).vocab_size
            write_serving_ends(checkpoint, checkpoints.load_tokenizer(checkpoint, vocab_size))
        arguments = parse_options(checkpoint, host, port, model.name, options)
        try:
            _, listener = setup_server(arguments, reuse_port=False)
        except (ValueError, TypeError, KeyError, ImportError, OSError) as error:
            raise InputError(f"serve: {one_line(error)}") from error
        with listener:
            asyncio.run(run_server(arguments, listener, model, follow, log))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


async def run_server(
    arguments: Namespace, listener: socket.socket, model: ResolvedModel, follow: bool, log: Log
) -> None:
    """Start the engine, serve until a signal or a failure, and stop the engine.

    `arguments`: of `parse_options`; `listener`: a bound socket; the others as in `serve`. Raises
    InputError when vLLM does not accept the checkpoint or its options, RunError as `serve`.
    """
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(build_async_engine_client(arguments))
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise InputError(
                f"vLLM cannot serve {model.path}: {one_line(error, limit=300)}"
            ) from error
        client.shutdown = _without_log(client.shutdown)
        app, swapper = await _build_app(client, arguments, model)
        shutdown = await _serve_requests(app, swapper, arguments, listener, follow, log)
        # vLLM returns this coroutine if a signal ended the server, otherwise another one
        ended_by_signal = shutdown.__name__ == "shutdown"
    await shutdown
    if not ended_by_signal:
        raise RunError(f"serve: {swapper.failure or 'the engine died'}")
    log("ended")


async def _build_app(
    client: EngineClient, arguments: Namespace, model: ResolvedModel
) -> tuple[FastAPI, NightSwapper]:
    """Return vLLM's web application with the night routes, and the swapper that they use."""
    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    await init_app_state(client, app.state, arguments, tasks)

    def stop_server() -> None:
        app.state.server.should_exit = True

    swapper = NightSwapper(client, model, stop_server)
    await swapper.read_memory()
    app.state.swapper = swapper
    app.include_router(night_routes(swapper))
    return app, swapper


async def _serve_requests(
    app: FastAPI,
    swapper: NightSwapper,
    arguments: Namespace,
    listener: socket.socket,
    follow: bool,
    log: Log,
) -> Coroutine[Any, Any, None]:
    """Serve until a signal or a failure; return the coroutine to await after the engine's end."""
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(2048)
    except OSError as error:  # another server has taken the port while this one was loading
        raise InputError(
            f"serve: cannot listen on {host}:{port} ({error.strerror or error})"
        ) from error
    log(_greeting(swapper, arguments, host, port, follow))
    async with _following(swapper, follow, log):
        return await serve_http(
            app,
            sock=listener,
            host=host,
            port=port,
            log_level=arguments.uvicorn_log_level,
            access_log=not arguments.disable_uvicorn_access_log,
            **{key: getattr(arguments, key) for key in SSL_OPTIONS},
        )


def _greeting(
    swapper: NightSwapper, arguments: Namespace, host: str, port: int, follow: bool
) -> str:
    name = arguments.served_model_name[0]
    scheme = "https" if arguments.ssl_keyfile else "http"
    address = f"[{host}]" if ":" in host else host
    follows = ", and follows its run" if follow else ""
    return (
        f"{name} ({swapper.label}) answers at {scheme}://{address}:{port}/v1{follows}; "
        "Ctrl-C ends it"
    )


@asynccontextmanager
async def _following(swapper: NightSwapper, follow: bool, log: Log) -> AsyncIterator[None]:
    """Let the swapper follow its run within the block, if `follow`."""
    if not follow:
        yield
        return
    task = asyncio.create_task(swapper.follow(log))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _without_log(shutdown: Callable[..., None]) -> Callable[..., None]:
    """Return vLLM's `shutdown` with logging disabled: vLLM's client logs an intended shutdown as an
    error.
    """

    def quiet_shutdown(*args: object, **kwargs: object) -> None:
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        shutdown(*args, **kwargs)

    return quiet_shutdown
