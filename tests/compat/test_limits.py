"""What proxies, with their documented configurations, keep from the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from tests.compat.test_proxies import PROXIES, Proxy, behind, documented
from tests.compat.test_servers import IDLE
from tests.support.servers import connection, every_event


@asynccontextmanager
async def somebody_else(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client with another address than `client` has."""
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=client.base_url, transport=transport) as other:
        yield other


# With these, the limits are the documented ones, but a slow machine reaches them, too.
SLOWLY = {"nginx": ("rate=20r/s", "rate=1r/m"), "haproxy": ("rate(10s)", "rate(1h)")}
IN_A_BURST = {"nginx": 101, "haproxy": 300}


@documented
async def test_a_burst_beyond_the_limit_gets_a_429_while_others_are_served(
    proxy: Proxy, tmp_path: Path
) -> None:
    name = proxy.program.command.split()[0]
    async with (
        behind(proxy, tmp_path, SLOWLY[name]) as (client, _),
        somebody_else(client) as other,
    ):
        allowed = IN_A_BURST[name]
        statuses = [(await client.get("/health")).status_code for _ in range(allowed + 20)]
        assert statuses == [200] * allowed + [429] * 20
        events = await every_event(other, "/streams/counter?count=2&interval=0")
        assert events[-1].json() == {"status": "completed"}
        assert (await client.get("/health")).status_code == 429


@documented
async def test_more_streams_than_the_limit_get_a_429_while_others_are_served(
    proxy: Proxy, tmp_path: Path
) -> None:
    async with behind(proxy, tmp_path) as (client, _), somebody_else(client) as other:
        url = str(client.base_url).rstrip("/")
        async with AsyncExitStack() as streams:
            for _ in range(100):
                opened = await streams.enter_async_context(connection(url, IDLE))
                await opened.until(lambda stream: stream.body, "the stream has begun", 20)
            assert (await client.get("/health")).status_code == 429
            assert (await other.get("/health")).status_code == 200
        with anyio.fail_after(20):
            while (await client.get("/health")).status_code == 429:
                await asyncio.sleep(0.1)


@documented
async def test_a_client_that_does_not_complete_its_headers_is_disconnected(
    proxy: Proxy, tmp_path: Path
) -> None:
    name = proxy.program.command.split()[0]
    setting = {"nginx": "client_header_timeout", "haproxy": "timeout http-request"}[name]
    async with behind(proxy, tmp_path, (f"{setting} 10s", f"{setting} 1s")) as (client, _):
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: ")
        with anyio.fail_after(20):
            answer = await reader.read()
        assert b"200" not in answer.partition(b"\r\n")[0]
        assert (await client.get("/health")).status_code == 200
        writer.close()


@pytest.mark.parametrize(
    "proxy",
    [each for each in PROXIES if each.name.endswith("as documented")],
    ids=lambda proxy: proxy.name,
)
async def test_a_page_of_the_same_origin_is_that_also_behind_a_proxy(
    proxy: Proxy, tmp_path: Path
) -> None:
    """By plain HTTP, where a browser sends no Sec-Fetch-Site."""
    async with behind(proxy, tmp_path) as (client, _):
        own = {"Origin": str(client.base_url).rstrip("/")}
        evil = {"Origin": "http://127.0.0.1:1"}
        posted = await client.post("/streams/counter", json={"count": 0}, headers=own)
        assert posted.status_code == 200, posted.text
        refused = await client.post("/streams/counter", json={"count": 0}, headers=evil)
        assert refused.status_code == 403
