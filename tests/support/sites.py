"""A server and a page of somebody else, for tests with two sites in a real browser."""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams import Streams
from streams.sources import clock, counter

streams = Streams(
    [counter, clock],
    hosts=["plain.example"],
    origins=list(filter(None, [os.environ.get("TEST_ORIGIN")])),
    api_keys=list(filter(None, [os.environ.get("TEST_KEY")])),
)
answers: list[tuple[str, int]] = []
"""The query and the status of each answer of `streams`."""


class Noting:
    """Notes the answers of an app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                answers.append((scope["query_string"].decode(), message["status"]))
            await send(message)

        await self.app(scope, receive, noted)


async def page(request: Request) -> Response:
    return HTMLResponse("<!doctype html><title>Somebody else</title>")


async def seen(request: Request) -> Response:
    return JSONResponse({"answers": answers, "runs": len(await streams.runs.list())})


site = Starlette(routes=[Route("/", page)])
server = Starlette(
    routes=[
        # What a server of somebody else has sent, before its name began to mean this one.
        Route("/rebound", page),
        Route("/seen", seen),
        Mount("/", Noting(streams)),
    ],
    lifespan=streams.lifespan,
)
