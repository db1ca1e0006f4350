"""Streams behind middleware, and inside endpoints with FastAPI dependencies."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi import Request as FastAPIRequest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams import Streams
from streams.sources import counter
from tests.support.servers import Connection, connection, every_event, serving, until


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["X-Passed"] = "yes"
        return response


class ReadsTheBody(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        length = len(await request.body())
        response = await call_next(request)
        response.headers["X-Length"] = str(length)
        return response


class ReplaysTheBody:
    """Receives the first message of the body itself, and passes it to the app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: Message | None = await receive() if scope["type"] == "http" else None

        async def replayed() -> Message:
            nonlocal first
            message, first = first, None
            return message or await receive()

        await self.app(scope, replayed, send)


class ByHeader(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        if "x-user" not in conn.headers:
            raise AuthenticationError("who are you?")
        return AuthCredentials(), SimpleUser(conn.headers["x-user"])


LAYERS = {
    "BaseHTTPMiddleware": Middleware(Passing),
    "GZipMiddleware": Middleware(GZipMiddleware, minimum_size=0),
    "CORSMiddleware": Middleware(CORSMiddleware, allow_origins=["https://example.org"]),
    "SessionMiddleware": Middleware(SessionMiddleware, secret_key="for tests"),
    "AuthenticationMiddleware": Middleware(AuthenticationMiddleware, backend=ByHeader()),
    "one that reads the body": Middleware(ReadsTheBody),
    "one that replays the body": Middleware(ReplaysTheBody),
}
STACKS = {**{name: [layer] for name, layer in LAYERS.items()}, "all": list(LAYERS.values())}
BODY = '{"interval":60}'
ORIGIN = "https://example.org"
HEADERS = (
    f"Origin: {ORIGIN}\r\nAccept-Encoding: gzip\r\nCookie: session=none\r\n"
    "X-User: ann\r\nContent-Type: application/json\r\n"
)

every_stack = pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS.keys())


def wrapped(layers: list[Middleware], streams: Streams) -> Starlette:
    return Starlette(routes=[Mount("/live", streams)], middleware=layers)


def has_first_number(stream: Connection) -> bool:
    return b'data: {"number":0}\n\n' in stream.body


@every_stack
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_events_are_not_buffered_and_a_disconnect_detaches_the_reader(
    layers: list[Middleware], method: str
) -> None:
    # Only a disconnect detaches a reader.
    streams = Streams([counter], heartbeat=3600, origins=[ORIGIN])
    path, headers = "/live/streams/counter", HEADERS
    if method == "POST":
        headers += f"Content-Length: {len(BODY)}\r\n"
    else:
        path += "?interval=60"
    async with serving(wrapped(layers, streams)) as url:
        async with connection(url, path, method=method, headers=headers) as stream:
            if method == "POST":
                stream.writer.write(BODY.encode())
            await stream.until(has_first_number, "the first number has arrived")
            assert "content-encoding" not in stream.head
            assert streams.log.readers == 1
        await until(lambda: not streams.log.readers, "the reader is detached")


@every_stack
async def test_json_lines_are_not_buffered(layers: list[Middleware]) -> None:
    streams = Streams([counter], heartbeat=3600, origins=[ORIGIN])
    path, headers = "/live/streams/counter?interval=60", f"Accept: application/jsonl\r\n{HEADERS}"
    async with (
        serving(wrapped(layers, streams)) as url,
        connection(url, path, headers=headers) as stream,
    ):
        await stream.until(
            lambda stream: stream.body.endswith(b'"data":{"number":0}}\n'),
            "the first number has arrived",
        )


@every_stack
async def test_a_stream_is_complete_and_ends_when_its_run_ends(layers: list[Middleware]) -> None:
    streams = Streams([counter], origins=[ORIGIN])
    headers = dict(line.split(": ") for line in HEADERS.splitlines())
    async with (
        serving(wrapped(layers, streams)) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        events = await every_event(client, "/live/streams/counter?count=200&interval=0")
        assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(200)]
        async with connection(url, "/live/streams/counter?interval=60", headers=HEADERS) as stream:
            await stream.until(has_first_number, "the first number has arrived")
            stopped = await client.delete(f"/live/runs/{stream.run}")
            assert stopped.status_code == 204
            await stream.until(lambda stream: stream.terminated, "the stream has ended")


async def test_only_the_user_of_the_same_session_can_read_or_stop_a_run() -> None:
    class BySession(AuthenticationBackend):
        async def authenticate(
            self, conn: HTTPConnection
        ) -> tuple[AuthCredentials, BaseUser] | None:
            name = conn.session.get("user")
            return (AuthCredentials(), SimpleUser(name)) if name else None

    async def login(request: Request) -> Response:
        request.session["user"] = request.query_params["name"]
        return JSONResponse({})

    app = Starlette(
        routes=[Route("/login", login), Mount("/live", Streams([counter]))],
        middleware=[
            Middleware(SessionMiddleware, secret_key="for tests"),
            Middleware(AuthenticationMiddleware, backend=BySession()),
        ],
    )
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url) as ann,
        httpx.AsyncClient(base_url=url) as bob,
    ):
        await ann.get("/login?name=ann")
        await bob.get("/login?name=bob")
        events = await every_event(ann, "/live/streams/counter?count=3&interval=0")
        run = f"/live/runs/{events[0].json()['run']}"
        assert len(await every_event(ann, run, events[2].id)) == 2
        assert (await bob.get(run)).status_code == 404
        assert (await bob.delete(run)).status_code == 404


async def test_fastapi_opens_dependencies_before_the_stream_and_closes_them_after_it() -> None:
    streams = Streams()
    steps: list[str] = []
    app = FastAPI(dependencies=[Depends(lambda: steps.append("app"))])
    app.mount("/live", streams)

    async def database() -> AsyncIterator[str]:
        steps.append("opened")
        try:
            yield "row"
        finally:
            steps.append("closed")

    async def rows(row: str, n: int) -> AsyncIterator[dict[str, Any]]:
        for number in range(n):
            steps.append(f"{row} {number}")
            yield {row: number}

    @app.get("/rows")
    async def endpoint(
        request: FastAPIRequest, database: Annotated[str, Depends(database)], n: int
    ) -> Response:
        return streams.response(request, rows(database, n))

    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.get("/rows?n=2")
        assert re.findall("data: (.*)", response.text)[1:] == [
            '{"row":0}',
            '{"row":1}',
            '{"status":"completed"}',
        ]
        await until(lambda: "closed" in steps, "the dependency is closed")
        assert steps == ["app", "opened", "row 0", "row 1", "closed"]
        run = await client.get(response.headers["content-location"])
        assert run.text.partition("\n")[2] == response.text.partition("\n")[2]
        assert (await client.get("/rows?n=two")).status_code == 422
