"""vLLM's OpenAI-compatible server for a sleep checkpoint, with one more route and one more header.

`GET /v1/night` says which night answers and which there are, `POST /v1/night {"night": 2}` changes
it. Every answer names the night that wrote it, whole, in the header `x-sleep-rl-night`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StrictInt
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.serve.utils.api_utils import validate_json_request
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from actors.memory_access import MemoryAccess
from actors.plugin import register
from actors.serving.weight_swap import Nights, SwapTimeout
from sleep_rl.contracts.errors import InputError, RunError, one_line
from sleep_rl.model import checkpoints
from sleep_rl.model.shape import parse_shape
from sleep_rl.runs.resolve import Found

ROUTE, HEADER = "/v1/night", "x-sleep-rl-night"
OWNED = (
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
"""vLLM options that cannot be set; nor any data_parallel one: a night is written into one
engine.
"""
# tokens of a sequence; room for eight of them, but within these
CPU_LONGEST, CPU_CACHE_MIB = 4096, (64, 2048)
Say = Callable[[str], None]


def serve(
    found: Found, host: str, port: int, options: Sequence[str], follow: bool, say: Say
) -> None:
    """Serves until SIGINT or SIGTERM. `options`: vLLM's own, as name=value. `follow`: takes every
    night that the run adds. Raises InputError for a checkpoint, an option or an address that cannot
    work, RunError when the engine dies or its memory is lost.
    """
    # until the server takes them over; asyncio's own would wait for vLLM
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    register()
    with tempfile.TemporaryDirectory(prefix="sleep_rl-serve-") as folder:
        checkpoint = checkpoints.expand(
            found.path, os.path.join(folder, "model"), checkpoints.levels_of(found.path)
        )
        arguments = _arguments(checkpoint, host, port, found.name, options)
        try:
            _, listener = setup_server(arguments, reuse_port=False)
        except (ValueError, TypeError, KeyError, ImportError, OSError) as error:
            raise InputError(f"serve: {one_line(error)}") from error
        with listener:
            asyncio.run(_serve(arguments, listener, found, follow, say))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _arguments(
    checkpoint: str, host: str, port: int, name: str, options: Sequence[str]
) -> Namespace:
    """What vLLM's own parser makes of name=value; true and false stand for a bare --name and
    --no-name.
    """
    chosen = {
        key.replace("-", "_"): value
        for key, _, value in (option.partition("=") for option in options)
    }
    for key in chosen:
        if key.partition(".")[0] in OWNED or key.startswith("data_parallel"):
            raise InputError(f"serve: {key} is no option to set here, the program sets it itself")
    given = {
        "served_model_name": name,
        "uvicorn_log_level": "warning",
        "disable_uvicorn_access_log": "true",
        "use_tqdm_on_load": "false",
        "allowed_origins": "[]",
    }  # a web page must not ask a server on the loopback address
    if current_platform.is_cpu():
        given |= _cpu_defaults(checkpoint)
    line = [
        f"--model={checkpoint}",
        f"--host={host}",
        f"--port={port}",
        f"--worker-extension-cls={MemoryAccess.__module__}.{MemoryAccess.__qualname__}",
        f"--middleware={Gate.__module__}.{Gate.__qualname__}",
    ]
    for key, value in (given | chosen).items():
        flag = key.replace("_", "-")
        line.append(
            {"true": f"--{flag}", "false": f"--no-{flag}"}.get(value.lower(), f"--{flag}={value}")
        )
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
    def error(self, message: str) -> None:
        raise ValueError(message)


def _cpu_defaults(checkpoint: str) -> dict[str, str]:
    """Options with which a server on CPU starts in seconds and takes no more memory than it
    needs.
    """
    shape = parse_shape(checkpoints.read_config(checkpoint).to_dict(), checkpoint)
    longest = min(shape.positions or CPU_LONGEST, CPU_LONGEST)
    least, most = CPU_CACHE_MIB
    cache = min(max(8 * longest * shape.cached_values * 4, least << 20), most << 20)
    return {
        "dtype": "float32",
        "enforce_eager": "true",
        "max_model_len": str(longest),
        "kv_cache_memory_bytes": str(cache),
        # see actors.engine: with it, seeds would kill the engine
        "enable_chunked_prefill": "false",
    }


async def _serve(
    arguments: Namespace, listener: socket.socket, found: Found, follow: bool, say: Say
) -> None:
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(build_async_engine_client(arguments))
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise InputError(
                f"vLLM cannot serve {found.path}: {one_line(error, limit=300)}"
            ) from error
        nights, ending = await _answer(client, arguments, listener, found, follow, say)
        # vLLM hands this back when a signal ended it, and something else otherwise
        told = ending.__name__ == "shutdown"
    await ending
    if not told:
        raise RunError(f"serve: {nights.lost or 'the engine died'}")
    say("ended")


async def _answer(
    client: EngineClient,
    arguments: Namespace,
    listener: socket.socket,
    found: Found,
    follow: bool,
    say: Say,
):
    """Answers until a signal or a failure; returns the nights and what is left to await when the
    engine has ended.
    """
    tasks = await client.get_supported_tasks()
    app = build_app(arguments, tasks, client.model_config)
    await init_app_state(client, app.state, arguments, tasks)
    nights = Nights(client, found, end=lambda: setattr(app.state.server, "should_exit", True))
    await nights.begin()
    app.state.nights = nights
    client.shutdown = _quiet(client.shutdown)
    app.include_router(_routes(nights))
    host, port = listener.getsockname()[:2]
    scheme, name = "https" if arguments.ssl_keyfile else "http", arguments.served_model_name[0]
    try:
        listener.listen(2048)
    except OSError as error:  # another server has begun to listen while this one was loading
        raise InputError(
            f"serve: {host}:{port} cannot be listened on ({error.strerror or error})"
        ) from error
    say(
        f"{name} ({nights.label}) answers at "
        f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1"
        f"{', and follows its run' if follow else ''}; ctrl-C ends it"
    )
    following = asyncio.create_task(nights.follow(say)) if follow else None
    try:
        ssl = {
            key: getattr(arguments, key)
            for key in (
                "ssl_keyfile",
                "ssl_certfile",
                "ssl_ca_certs",
                "ssl_cert_reqs",
                "ssl_ciphers",
                "enable_ssl_refresh",
            )
        }
        ending = await serve_http(
            app,
            sock=listener,
            host=host,
            port=port,
            log_level=arguments.uvicorn_log_level,
            access_log=not arguments.disable_uvicorn_access_log,
            **ssl,
        )
    finally:
        if following:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
    return nights, ending


def _quiet(shutdown: Callable[..., None]) -> Callable[..., None]:
    """That the engine is gone when it was told to end is no error, though vLLM's client logs it as
    one.
    """

    def ended(*given: object, **options: object) -> None:
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        shutdown(*given, **options)

    return ended


class Gate:
    """ASGI middleware: what asks the model for something goes through the door, and its answer says
    who wrote it.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == ROUTE:
            return await self.app(scope, receive, send)
        nights: Nights = scope["app"].state.nights
        async with nights.door.inside_of():
            label = nights.label  # it cannot change before this answer has ended

            async def signed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)[HEADER] = label
                await send(message)

            await self.app(scope, receive, signed)


class SetNightRequest(BaseModel):
    night: StrictInt


def _routes(nights: Nights) -> APIRouter:
    router = APIRouter()

    @router.get(ROUTE)
    async def night() -> JSONResponse:
        return JSONResponse({"night": nights.night, "nights": list(nights.there())})

    @router.post(ROUTE, dependencies=[Depends(validate_json_request)])
    async def take(wish: SetNightRequest) -> JSONResponse:
        try:
            await nights.take(wish.night)
        except (InputError, RunError) as error:
            code = (
                400
                if isinstance(error, InputError)
                else 503
                if isinstance(error, SwapTimeout)
                else 500
            )
            return JSONResponse(
                {"error": {"message": str(error), "type": type(error).__name__, "code": code}}, code
            )
        return await night()

    return router
