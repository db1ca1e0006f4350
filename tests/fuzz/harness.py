"""The server that is fuzzed, and the client that sends odd requests to it."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streams import Streams, source, topic
from streams.sources import clock, counter, tokens
from tests.fuzz.check import fault_of
from tests.fuzz.requests import Request

ANSWER_SECONDS = 30.0
AT_ONCE = 8
READ_BYTES = 5000
"""Of an answer that is longer, or that does not end soon, the client reads no more."""
READ_SECONDS = 0.2
BODY_SECONDS = 0.3
RETAIN_SECONDS = 2.0


@source
async def anything(
    value: Any = None,
    numbers: Sequence[float] = (),
    number: int | None = None,
    flag: bool = False,
) -> AsyncIterator[Any]:
    """Yields what it is given."""
    yield value
    yield [*numbers, number, flag]


@topic
def room(name: str = "") -> None:
    """A room."""


def app(log: str | None) -> ASGIApp:
    streams = Streams(
        [counter, tokens, clock, anything, room],
        models={"mock": tokens},
        log=log,
        publish=lambda request: None,
        metrics=True,
        max_runs=500,
        max_body=200_000,
        body_timeout=BODY_SECONDS,
        linger=0.5,
        retain=RETAIN_SECONDS,
    )

    async def own(request: StarletteRequest) -> Response:
        return streams.response(request, anything("own"))

    routes = [Route("/own", own), Mount("/t/{tenant}", streams)]
    around = Starlette(routes=routes, lifespan=streams.lifespan)
    around.router.redirect_slashes = False

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        is_inside = scope["type"] == "lifespan" or scope["path"].startswith(("/own", "/t/"))
        await (around if is_inside else streams)(scope, receive, send)

    return dispatch


class Failures(logging.Handler):
    """Keeps what the server logs with a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.records.append(logging.Formatter().format(record))


@contextmanager
def server(log: str | None, http: Any) -> Iterator[tuple[int, Failures]]:
    """Serves the app in a thread, with an event loop of its own. Yields its port."""
    failures = Failures()
    root = logging.getLogger()
    config = uvicorn.Config(
        app(log), port=0, http=http, loop="asyncio", log_config=None, access_log=False
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, name="fuzzed server")
    root.addHandler(failures)
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive(), "the server has not started"
            time.sleep(0.01)
        yield running.servers[0].sockets[0].getsockname()[1], failures
    finally:
        running.should_exit = True
        thread.join(30)
        root.removeHandler(failures)


class Fault(AssertionError):
    """An answer, or the lack of one, that no request may get."""


async def fuzz(port: int, failures: Failures, requests: Iterable[Request]) -> None:
    """Sends requests, some at once. Raises Fault."""
    pending: list[Request] = []
    known: list[str] = []
    for number, request in enumerate(requests):
        if number % 200 == 0:
            known = await _known_runs(port)
        pending.append(request)
        if len(pending) == AT_ONCE:
            await _send_all(port, failures, pending, known)
            pending = []
    await _send_all(port, failures, pending, known)
    await _check_health(port)


async def _known_runs(port: int) -> list[str]:
    """A finished run, and a shared one and a topic that are running."""
    known = []
    paths = ["/streams/counter?count=3&interval=0.01", "/streams/clock", "/streams/room"]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for path in paths:
            async with client.stream("GET", path) as answer:
                assert answer.status_code == 200, f"{path}: {answer.status_code}"
                known.append(answer.headers["content-location"].rpartition("/")[2])
                if path == paths[0]:
                    await answer.aread()
    return known


async def _send_all(
    port: int, failures: Failures, requests: Sequence[Request], known: Sequence[str]
) -> None:
    outcomes = await asyncio.gather(
        *(_send(port, request, known) for request in requests), return_exceptions=True
    )
    for outcome in filter(None, outcomes):
        raise outcome
    if failures.records:
        sent = "\n".join(map(str, requests))
        raise Fault(f"the server has logged\n{failures.records[0]}\nafter one of\n{sent}")


async def _send(port: int, request: Request, known: Sequence[str]) -> None:
    def insert(data: bytes) -> bytes:
        return re.sub(rb"KNOWN(\d)", lambda match: known[int(match[1])].encode(), data)

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        with suppress(ConnectionError):
            writer.write(insert(request.head))
            if request.end == "abort":
                writer.write(request.body[: len(request.body) // 2])
                await writer.drain()
                return
            writer.write(request.body)
            await writer.drain()
        received = await _received(reader, request)
    except TimeoutError:
        raise Fault(f"no answer in {ANSWER_SECONDS:g} s to {request}") from None
    finally:
        writer.transport.abort()
    if not received:
        raise Fault(f"the connection was closed without an answer to {request}")
    if request.end != "leave" and (fault := fault_of(request, received)) is not None:
        raise Fault(f"{fault}\nto {request}")


async def _received(reader: asyncio.StreamReader, request: Request) -> bytes:
    received = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(ANSWER_SECONDS):
            while b"\r\n\r\n" not in received and (data := await reader.read(2**16)):
                received += data
        is_refusal = received[9:10] in (b"4", b"5")
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS if is_refusal else READ_SECONDS):
                while len(received) < READ_BYTES or is_refusal:
                    if request.end == "leave" or not (data := await reader.read(2**16)):
                        break
                    received += data
    return received


async def _check_health(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for path in ("/health", "/streams/counter?count=1&interval=0.01"):
            answer = await client.get(path)
            assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
