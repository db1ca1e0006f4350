"""admission.py and producing.py: how much one client, and one shared source, can have at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from streams import StreamError, Streams, client_address, source
from streams.admission import Clients, leave
from streams.errors import TooManyRequests
from tests.support.servers import Connection, connection, retry_of, serving, until

EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}


def ann_or_nobody(request: Request) -> str | None:
    return request.headers.get("x-user")


@source
async def waits() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


@source(shared=True)
async def feed(topic: str = "a") -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


@source
async def fails() -> AsyncIterator[int]:
    raise StreamError("not today", status=451)
    yield 1


def has_begun(stream: Connection) -> bool:
    return b"data: 1\n" in stream.body


class Site:
    """A server, and its clients by name; the name None is an anonymous one."""

    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self.stack = stack
        self.url = url
        self.client = httpx.AsyncClient(base_url=url)

    async def open(self, path: str, user: str | None = "ann", **headers: str) -> Connection:
        """Opens a stream, and waits for its first event."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if user is not None:
            lines += f"X-User: {user}\r\n"
        stream = await self.stack.enter_async_context(connection(self.url, path, headers=lines))
        await stream.until(has_begun, "the stream has begun")
        return stream

    async def get(self, path: str, user: str | None = "ann", **headers: str) -> httpx.Response:
        names = {} if user is None else {"X-User": user}
        return await self.client.get(path, headers={**names, **headers})

    async def delete(self, stream: Connection) -> None:
        await self.client.delete(f"/runs/{stream.run}", headers={"X-User": "ann"})


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def site_of(stack: AsyncExitStack, *sources: Any, **options: Any) -> Site:
    app = Streams(sources, identity=ann_or_nobody, **options)
    site = Site(stack, await stack.enter_async_context(serving(app)))
    await stack.enter_async_context(site.client)
    return site


def refused(response: httpx.Response, status: int, text: str) -> bool:
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert text in response.json()["detail"]
    return 10 <= int(response.headers["retry-after"]) <= 20


async def test_a_client_has_as_many_streams_as_it_may_and_one_more_when_one_has_ended(
    stack: AsyncExitStack,
) -> None:
    site = await site_of(stack, feed, waits, max_per_client=2)
    one, _ = await site.open("/streams/feed"), await site.open("/streams/feed")
    response = await site.get("/streams/feed")
    assert refused(response, 429, "your identity has 2 streams open at once, which is the limit")
    assert refused(await site.get(f"/runs/{one.run}"), 429, "2 streams open")
    assert refused(await site.get("/streams/waits"), 429, "2 streams open")
    response = await site.get("/streams/feed", **EVENT_SOURCE)
    assert response.status_code == 200
    assert 10_000 <= retry_of(response) <= 20_000
    await site.open("/streams/feed", "bob")
    for _ in range(3):
        await site.open("/streams/feed", None)
    state = await site.get(f"/runs/{one.run}", Accept="application/json")
    assert state.json()["readers"] == 6
    one.abort()
    await until_served(site, "/streams/feed?topic=b")


async def until_served(site: Site, path: str) -> None:
    async with asyncio.timeout(5):
        while True:
            async with site.client.stream("GET", path, headers={"X-User": "ann"}) as response:
                if response.status_code == 200:
                    return


async def test_a_client_has_as_many_running_runs_as_it_may_whether_it_reads_them_or_not(
    stack: AsyncExitStack,
) -> None:
    site = await site_of(stack, waits, max_per_client=2)
    one, two = await site.open("/streams/waits"), await site.open("/streams/waits")
    for stream in (one, two):
        stream.abort()
    async with asyncio.timeout(5):
        while "runs running" not in (response := await site.get("/streams/waits")).text:
            pass  # The server has not noticed yet that both have left.
    assert refused(response, 429, "your identity has 2 runs running at once, which is the limit")
    await site.open("/streams/waits", "bob")
    await site.delete(one)
    await until_served(site, "/streams/waits")


async def test_a_client_at_its_limit_still_gets_the_run_of_its_key(stack: AsyncExitStack) -> None:
    site = await site_of(stack, waits, max_per_client=2)
    keyed = {"Idempotency-Key": "a"}
    first = await site.open("/streams/waits", **keyed)
    await site.open("/streams/waits")
    first.abort()
    second = "/streams/waits?idempotency_key="
    async with asyncio.timeout(5):
        while "streams open" in (response := await site.get(f"{second}b")).text:
            pass  # The server has not noticed yet that the first one has left.
    assert refused(response, 429, "2 runs running")
    assert (await site.open("/streams/waits", **keyed)).run == first.run


async def test_runs_and_streams_of_refused_and_failed_requests_are_given_back(
    stack: AsyncExitStack,
) -> None:
    site = await site_of(stack, waits, fails, max_per_client=1)
    for _ in range(3):
        assert (await site.get("/streams/fails")).status_code == 451
        assert (await site.get("/streams/waits?x=1")).status_code == 422
        assert (await site.get("/runs/AAAAAAAAAAAAAAAAAAAAAA")).status_code == 404
        assert (await site.get("/streams/waits", **{"Last-Event-ID": "x.1"})).status_code >= 400
    await site.open("/streams/waits")


async def test_a_client_that_leaves_before_its_response_starts_gives_back_what_it_had(
    stack: AsyncExitStack,
) -> None:
    gate, opened = asyncio.Event(), 0

    @source(linger=0)
    async def slow() -> Any:
        nonlocal opened
        opened += 1
        await gate.wait()
        return numbers()

    async def numbers() -> AsyncIterator[int]:
        yield 1

    site = await site_of(stack, slow, max_per_client=1)
    async with connection(site.url, "/streams/slow", headers="X-User: ann\r\n"):
        await until(lambda: opened, "the source opens")
        assert refused(await site.get("/streams/slow"), 429, "1 streams open")
    gate.set()
    await until_served(site, "/streams/slow")


async def test_the_limit_holds_for_endpoints_of_the_users_own(stack: AsyncExitStack) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    streams = Streams(max_per_client=1)

    async def own(request: Request) -> Any:
        return streams.response(request, waits.function, owner=request.headers.get("x-user"))

    routes = [Route("/own", own), Mount("/live", streams)]
    app = Starlette(routes=routes, lifespan=streams.lifespan)
    site = Site(stack, await stack.enter_async_context(serving(app)))
    await stack.enter_async_context(site.client)
    first = await site.open("/own")
    assert refused(await site.get("/own"), 429, "1 streams open")
    await site.open("/own", "bob")
    await site.open("/own", None)
    await streams.runs.stop(first.run)
    await first.until(lambda stream: stream.terminated, "the stream has ended")
    await until_served(site, "/own")


async def test_an_address_is_limited_too_if_the_app_says_which_it_is(
    stack: AsyncExitStack,
) -> None:
    def address(request: Request) -> str | None:
        return request.headers.get("x-address")

    site = await site_of(stack, feed, max_per_client=1, address=address)
    await site.open("/streams/feed", None, **{"X-Address": "a"})
    response = await site.get("/streams/feed", None, **{"X-Address": "a"})
    assert refused(response, 429, "your address has 1 streams open")
    response = await site.get("/streams/feed", "ann", **{"X-Address": "a"})
    assert refused(response, 429, "your address has 1 streams open")
    await site.open("/streams/feed", "ann", **{"X-Address": "b"})
    response = await site.get("/streams/feed", "ann", **{"X-Address": "c"})
    assert refused(response, 429, "your identity has 1 streams open")
    for _ in range(2):
        await site.open("/streams/feed", None)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("8.8.8.8", "8.8.8.8"),
        ("::ffff:8.8.8.8", "8.8.8.8"),
        ("2a00:1450:4001:81b::200e", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81b:1:2:3:4", "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81c::1", "2a00:1450:4001:81c::/64"),
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("10.1.2.3", None),
        ("192.168.0.1", None),
        ("172.16.0.1", None),
        ("100.64.0.1", None),
        ("169.254.1.1", None),
        ("fd00::1", None),
        ("fe80::1%eth0", None),
        ("testclient", None),
        ("", None),
        (None, None),
    ],
)
def test_a_client_address_is_a_public_one_or_its_network(
    host: str | None, address: str | None
) -> None:
    client = None if host is None else (host, 1)
    assert client_address(Request({"type": "http", "client": client})) == address


@pytest.mark.parametrize("limit", [0, -1, "2", 1.5])
def test_an_invalid_limit_is_an_error(limit: Any) -> None:
    with pytest.raises(TypeError, match="max_per_client="):
        Streams(max_per_client=limit)
    with pytest.raises(TypeError, match="max_shared"):
        Streams(max_shared=limit)


def test_an_address_that_is_no_function_is_an_error() -> None:
    with pytest.raises(TypeError, match="address= of Streams is a function"):
        Streams(address=SimpleNamespace())  # type: ignore[arg-type]


async def test_a_shared_source_has_max_shared_runs_and_the_other_sources_have_theirs(
    stack: AsyncExitStack,
) -> None:
    site = await site_of(stack, feed, waits, max_shared=2)
    one = await site.open("/streams/feed?topic=a")
    await site.open("/streams/feed?topic=b")
    response = await site.get("/streams/feed?topic=c")
    assert refused(
        response, 503, "source feed has 2 runs with other parameters (limit max_shared=2)"
    )
    response = await site.get("/streams/feed?topic=c", **EVENT_SOURCE)
    assert 10_000 <= retry_of(response) <= 20_000
    assert (await site.open("/streams/feed?topic=a")).run == one.run
    for _ in range(3):
        await site.open("/streams/waits")


async def test_a_run_of_a_shared_source_that_nobody_watches_makes_room_for_another(
    stack: AsyncExitStack,
) -> None:
    site = await site_of(stack, feed, max_shared=2)
    one = await site.open("/streams/feed?topic=a")
    two = await site.open("/streams/feed?topic=b")
    two.abort()
    await until_served(site, "/streams/feed?topic=c")
    state = {"Accept": "application/json"}
    assert (await site.get(f"/runs/{one.run}", **state)).json()["status"] == "running"
    assert (await site.get(f"/runs/{two.run}", **state)).json()["status"] == "cancelled"


async def test_a_shared_run_whose_first_viewer_has_still_to_attach_makes_no_room() -> None:
    streams, may_send = Streams([feed], max_shared=1), asyncio.Event()
    statuses: dict[str, int] = {}

    async def view(topic: str) -> None:
        async def send(message: Message) -> None:
            statuses.setdefault(topic, message.get("status", 0))
            await may_send.wait()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError("nobody disconnects")

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/streams/feed",
            "query_string": f"topic={topic}".encode(),
            "headers": [],
        }
        await streams(scope, receive, send)

    async with streams:
        one = asyncio.create_task(view("a"))
        await until(lambda: "a" in statuses, "the first response begins")
        two = asyncio.create_task(view("b"))
        await until(lambda: "b" in statuses, "the second response begins")
        may_send.set()
        await until(lambda: two.done(), "the second response is over")
        assert statuses == {"a": 200, "b": 503}
        one.cancel()
        await asyncio.wait([one])


def anns_request() -> Request:
    return Request({"type": "http", "headers": []})


def test_what_is_given_back_is_given_back_once() -> None:
    clients, requests = Clients(2, None), [anns_request() for _ in range(3)]
    for request in requests[:2]:
        clients.enter(request, "ann")
    for _ in range(2):
        leave(requests[0].scope)
    clients.enter(requests[0], "ann")
    with pytest.raises(TooManyRequests):
        clients.enter(requests[2], "ann")


def test_a_request_that_enters_twice_is_one_reader() -> None:
    clients, request = Clients(1, None), anns_request()
    for _ in range(2):
        clients.enter(request, "ann")
    with pytest.raises(TooManyRequests):
        clients.enter(anns_request(), "ann")
    leave(request.scope)
    clients.enter(anns_request(), "ann")
