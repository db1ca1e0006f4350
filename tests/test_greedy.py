"""Clients that read nothing, leave at once or ask for too much: the others are served."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from streams import Streams, source, topic
from streams.settings import from_environ
from tests.support.servers import client_of, connection, every_event, serving, until

EVENTS = 800
TEXT = "x" * 10_000


@source(shared=True)
async def feed() -> AsyncIterator[Any]:
    """Yields as fast as its viewers allow: 8 MB, more than all buffers hold."""
    for number in range(EVENTS):
        yield {"number": number, "text": TEXT}


@source
async def big() -> AsyncIterator[Any]:
    """10 MB at once, far more than `window` and all buffers hold for who reads nothing."""
    for number in range(1000):
        yield {"number": number, "text": TEXT}


@source
async def small() -> AsyncIterator[int]:
    for number in range(20):
        yield number


@source(shared=True)
async def forever(topic: int) -> AsyncIterator[int]:
    yield topic
    await asyncio.Event().wait()


class FromAnAddress:
    """An app whose clients have the address in their header X-Address."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            address = dict(scope["headers"]).get(b"x-address", b"127.0.0.1").decode()
            scope = {**scope, "client": (address, 1)}
        await self.app(scope, receive, send)


def app_py(**settings: str) -> Streams:
    """What app.py serves, with its defaults, but the sources of this file and a log in memory."""
    names = ("big", "small", "forever")
    sources = ",".join(f"tests.test_greedy:{name}" for name in names)
    given = {f"STREAMS_{name.upper()}": value for name, value in settings.items()}
    return from_environ({"STREAMS_SOURCES": sources, "STREAMS_LOG": "memory", **given})


async def an_honest_client_is_served(url: str) -> None:
    """It has another address."""
    headers = {"X-Address": "9.9.9.9"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        events = await every_event(client, "/streams/small")
    assert [event.event for event in events] == ["start", *["message"] * 20, "end"]


def numbers(body: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb'"number":(\d+)', body)]


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:{tmp_path}/runs.db"


async def test_viewers_of_a_shared_run_that_read_nothing_hold_up_nobody(log: str | None) -> None:
    app = Streams([feed], log=log, window=2**16)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(app))
        stalled = [
            await stack.enter_async_context(connection(url, "/streams/feed", receive_buffer=4096))
            for _ in range(5)
        ]
        await until(lambda: app.log.readers == 5, "the stalled viewers are attached")
        quick = await stack.enter_async_context(connection(url, "/streams/feed"))
        await quick.until(lambda quick: quick.terminated, "the other viewer has the end", 20)
        body = quick.body
        ids = [int(number) for number in re.findall(rb"id: [\w-]+\.(\d+)\n", body)]
        assert ids == [0, *range(ids[1], EVENTS + 2)], "after `start`, it misses nothing"
        assert b"event: gap" not in body
        assert b"event: end" in body
        for viewer in stalled:
            await viewer.until(lambda viewer: viewer.terminated, "a stalled viewer goes on", 20)
            got = numbers(viewer.body)
            missed = re.findall(rb'event: gap\ndata: {"missed":(\d+)}', viewer.body)
            assert missed
            assert len(got) + sum(map(int, missed)) == EVENTS - got[0]
            assert got == sorted(set(got))
            assert got[-1] == EVENTS - 1
            assert b"event: end" in viewer.body


ADDRESSES: dict[str, Callable[[int], str]] = {
    "an IPv4 address": lambda number: "8.8.8.8",
    "an IPv6 network": lambda number: f"2a00:1450:4001:81b::{number:x}",
}


@pytest.mark.parametrize("kind", ADDRESSES)
async def test_256_connections_of_one_client_that_read_nothing_shut_nobody_out(kind: str) -> None:
    app = app_py()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(FromAnAddress(app)))
        stalled = []
        for number in range(256):
            headers = f"X-Address: {ADDRESSES[kind](number)}\r\n"
            connecting = connection(url, "/streams/big", headers=headers, receive_buffer=4096)
            stalled.append(await stack.enter_async_context(connecting))
        await an_honest_client_is_served(url)
        assert app.log.readers == 100, "those who read nothing have as many as one client may"
        for stream in stalled:
            await stream.until(lambda stream: b"\r\n\r\n" in stream.received, "it is answered")
        refused = [stream for stream in stalled if stream.head.startswith("http/1.1 429 ")]
        assert len(refused) == 156
        assert all(re.search("retry-after: (1[0-9]|20)\r", stream.head) for stream in refused)


async def test_streams_of_clients_that_left_at_once_make_room_for_others() -> None:
    """Even if they have many addresses, and each of their runs holds as much as it may."""
    app = app_py(max_bytes=str(4 * 2**20), max_runs="50")
    async with serving(FromAnAddress(app)) as url:
        for number in range(264):
            headers = f"X-Address: 8.8.{number % 256}.8\r\n"
            async with connection(url, "/streams/big", headers=headers):
                pass
        await until(lambda: not app.log.readers, "all have left")
        await an_honest_client_is_served(url)
        assert len(app.log) <= 50
        assert app.log.bytes <= 6 * 2**20


async def test_a_thousand_parameters_of_a_shared_source_shut_nobody_out() -> None:
    app = app_py()
    async with serving(FromAnAddress(app)) as url:
        async with AsyncExitStack() as stack:
            statuses = []
            for topic in range(150):  # These stay.
                headers = f"X-Address: 8.8.{topic % 4}.8\r\n"
                connecting = connection(url, f"/streams/forever?topic={topic}", headers=headers)
                stream = await stack.enter_async_context(connecting)
                await stream.until(lambda stream: b"\r\n\r\n" in stream.received, "an answer")
                statuses.append(int(stream.head.split()[1]))
            assert statuses == [200] * 100 + [503] * 50
            await an_honest_client_is_served(url)
            async with connection(url, "/streams/forever?topic=0") as viewer:
                await viewer.until(lambda viewer: b"data: 0\n" in viewer.body, "it joins a run")
        for topic in range(1000):
            async with connection(url, f"/streams/forever?topic={topic}"):
                pass  # These leave at once.
        await until(lambda: not app.log.readers, "all have left")
        assert app.runs.health()["running"] <= 101
        await an_honest_client_is_served(url)


@topic
def news(user: str) -> None:
    """What a user should hear of."""


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_stranger_stops_neither_a_shared_run_nor_a_topic(
    kind: str, request: pytest.FixtureRequest
) -> None:
    log = None if kind == "memory" else request.getfixturevalue(f"{kind}_url")
    app = Streams([forever, news], log=log, identity=lambda request: request.headers.get("x-user"))
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/streams/forever?topic=7", "/streams/news?user=ann"):
            user = "X-User: ann\r\n"
            async with connection(url, path, headers=user) as viewer:
                await viewer.until(lambda viewer: b"event: start\n" in viewer.body, "it has begun")
                for headers in ({}, {"X-User": "ann"}, {"X-User": "eve"}):
                    stopped = await client.delete(f"/runs/{viewer.run}", headers=headers)
                    assert stopped.status_code == 403
                    assert "none of them can stop it" in stopped.json()["detail"]
                state = await client.get(
                    f"/runs/{viewer.run}", headers={"Accept": "application/json"}
                )
                assert state.json()["status"] == "running"


LONG = "x" * 100_000
MESSAGES = [{"role": "user", "content": LONG}]
STARTS = {
    "/streams/waiting": {"prompt": LONG},
    "/v1/chat/completions": {"model": "waiting", "messages": MESSAGES},
    "/v1/responses": {"model": "waiting", "input": LONG, "store": False},
}


@pytest.mark.parametrize("path", STARTS)
async def test_what_a_client_asks_counts_while_its_run_is_running_and_is_held_once(
    path: str,
) -> None:
    requests: list[Request] = []
    release = asyncio.Event()

    @source(guard=requests.append)
    async def waiting(prompt: str) -> AsyncIterator[str]:
        await release.wait()
        yield prompt[:1]

    streams = Streams([waiting], models={"waiting": waiting})
    async with client_of(streams) as client:
        asking = asyncio.create_task(client.post(path, json=STARTS[path]))
        await until(lambda: streams.log.bytes >= len(LONG), "the arguments are counted")
        await until(lambda: LONG not in str(vars(requests[0])), "the body is dropped")
        release.set()
        assert (await asking).status_code == 200
    assert streams.log.bytes < len(LONG)


async def test_a_source_that_takes_its_request_can_read_the_body() -> None:
    @source
    async def echo(prompt: str, request: Request) -> AsyncIterator[Any]:
        yield [prompt, await request.json()]

    async with client_of(Streams([echo])) as client:
        answer = await client.post("/streams/echo", json={"prompt": "Hello"})
    assert 'data: ["Hello",{"prompt":"Hello"}]' in answer.text
