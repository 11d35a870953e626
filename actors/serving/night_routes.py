"""Additions of `sleep-rl serve` to vLLM's HTTP interface: a route to read and set the night, and a
response header.

`GET /v1/night` returns {"night": n, "nights": [...]}: the served night and the available ones.
`POST /v1/night {"night": 2}` swaps another one in. Each response of the model names the one night
that generated it in the header `x-sleep-rl-night`.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StrictInt
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from actors.serving.weight_swap import NightSwapper, SwapTimeout
from sleep_rl.contracts.errors import InputError, RunError

ROUTE = "/v1/night"
HEADER = "x-sleep-rl-night"


class SetNightRequest(BaseModel):
    """Body of `POST /v1/night`."""

    night: StrictInt


class NightMiddleware:
    """ASGI middleware: requests to the model share the swapper's lock, and their responses get the
    header.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == ROUTE:
            return await self.app(scope, receive, send)
        swapper: NightSwapper = scope["app"].state.swapper
        async with swapper.request_lock.shared():
            label = swapper.label  # it cannot change before this response has ended

            async def send_with_header(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)[HEADER] = label
                await send(message)

            await self.app(scope, receive, send_with_header)


def night_routes(swapper: NightSwapper) -> APIRouter:
    """Return the routes that read and set the swapper's night."""
    router = APIRouter()

    @router.get(ROUTE)
    async def get_night() -> JSONResponse:
        return JSONResponse({"night": swapper.night, "nights": list(swapper.available())})

    @router.post(ROUTE, dependencies=[Depends(validate_json_request)])
    async def set_night(request: SetNightRequest) -> JSONResponse:
        try:
            await swapper.swap_to(request.night)
        except InputError as error:
            return _error(error, 400)
        except SwapTimeout as error:
            return _error(error, 503)
        except RunError as error:
            return _error(error, 500)
        return await get_night()

    return router


def _error(error: Exception, code: int) -> JSONResponse:
    """Return an error in the format of vLLM's other routes."""
    body = {"message": str(error), "type": type(error).__name__, "code": code}
    return JSONResponse({"error": body}, code)
