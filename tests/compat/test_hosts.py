"""Hosts: Streams mounted in other frameworks, which do not run its lifespan."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest

from streams import Streams
from streams.sources import counter
from tests.compat.hosts import HOSTS, Host, configure_django
from tests.support.blocks import blocks, needs_a_host
from tests.support.servers import (
    Connection,
    client_of,
    connection,
    every_event,
    serving,
    until,
)

every_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)


class Mounted:
    """A host that is served at `url`, with two Streams, at `prefix` and at `other`."""

    def __init__(self, url: str, streams: dict[str, Streams]) -> None:
        self.url = url
        self.prefix, self.other = streams
        self.streams = streams[self.prefix]
        self.other_streams = streams[self.other]


@asynccontextmanager
async def mounted(host: Host) -> AsyncIterator[tuple[Mounted, httpx.AsyncClient]]:
    # The second prefix is also how the paths inside Streams begin: a host that looks for the prefix
    # in the wrong part of the path fails.
    streams = {
        f"{host.under}/live": Streams([counter]),
        f"{host.under}/streams": Streams([counter]),
    }
    async with (
        serving(host.app(streams)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        yield Mounted(url, streams), client


def has_first_number(stream: Connection) -> bool:
    return b'{"number":0}' in stream.body


@every_host
@pytest.mark.column("streams and resumes")
async def test_a_stream_is_complete_and_resumes(host: Host) -> None:
    async with mounted(host) as (at, client):
        for slash in ("", "/"):
            path = f"{at.prefix}/streams/counter{slash}?count=5&interval=0"
            events = await every_event(client, path)
            assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(5)]
            again = await every_event(client, path, events[2].id)
            assert [event.id for event in again] == [event.id for event in events[3:]]


@every_host
@pytest.mark.column("sends events immediately, and stops")
async def test_events_arrive_immediately_until_the_run_is_stopped(host: Host) -> None:
    async with mounted(host) as (at, client):
        path = f"{at.prefix}/streams/counter?interval=60"
        async with connection(at.url, path) as stream:
            await stream.until(has_first_number, "the first number has arrived")
            response = await client.delete(f"{at.prefix}/runs/{stream.run}")
            assert response.status_code == 204
            await stream.until(lambda stream: stream.terminated, "the body is terminated")
            assert b'{"status":"cancelled","reason":"stopped"}' in stream.body


@every_host
@pytest.mark.column("notices a disconnect")
async def test_a_disconnect_is_noticed_before_the_next_heartbeat(host: Host) -> None:
    async with mounted(host) as (at, _):
        async with connection(at.url, f"{at.prefix}/streams/counter?interval=60") as stream:
            await stream.until(has_first_number, "the first number has arrived")
            assert at.streams.log.readers == 1
        await until(lambda: not at.streams.log.readers, "the run has no reader")


@every_host
@pytest.mark.column("right URLs")
async def test_its_urls_include_the_prefix(host: Host) -> None:
    async with mounted(host) as (at, client):
        for prefix in (at.prefix, at.other):
            source = (await client.get(f"{prefix}/streams")).json()["sources"][0]
            assert source["url"] == f"{prefix}/streams/counter"
            started = await client.get(source["url"], params={"count": 1})
            run = re.findall(r'"run":"(.+?)"', started.text)[0]
            assert started.headers["content-location"] == f"{prefix}/runs/{run}"
            again = await client.get(started.headers["content-location"])
            assert again.text.partition("\n")[2] == started.text.partition("\n")[2]


@every_host
@pytest.mark.column("page")
async def test_the_page_is_under_the_prefix(host: Host) -> None:
    async with mounted(host) as (at, client):
        page = await client.get(f"{at.prefix}/")
        assert page.headers["content-type"].startswith("text/html")
        files = re.findall('(?:href|src)="(.+?)"', page.text)
        for file in files:
            assert (await client.get(page.url.join(file))).status_code == 200, file
        assert len(files) > 2
        without_slash = await client.get(at.prefix, follow_redirects=True)
        assert without_slash.url == page.url


@every_host
@pytest.mark.column("two mounts are separate")
async def test_two_mounts_are_separate(host: Host) -> None:
    async with mounted(host) as (at, client):
        started = await client.get(f"{at.prefix}/streams/counter?count=1")
        path = started.headers["content-location"]
        elsewhere = path.replace(at.prefix, at.other, 1)
        assert (await client.get(elsewhere)).status_code == 404
        assert (await client.get(f"{at.other}/streams/counter?count=1")).status_code == 200
        assert (len(at.streams.log), len(at.other_streams.log)) == (1, 1)


@every_host
@pytest.mark.column("host's routes still work")
async def test_the_routes_of_the_host_still_work(host: Host) -> None:
    async with mounted(host) as (_, client):
        response = await client.get("/hello")
        assert (response.status_code, response.text.strip('"')) == (200, "hello")
        assert (await client.get("/nowhere")).status_code == 404


NO_ASGI = "its views cannot return an ASGI app; `response()` raises a TypeError that says so"


@pytest.mark.parametrize(
    "host", [host for host in HOSTS if host.endpoint], ids=lambda host: host.name
)
@pytest.mark.column("`response()` in an endpoint")
async def test_an_endpoint_of_its_own_streams_and_resumes(
    host: Host, request: pytest.FixtureRequest
) -> None:
    if host.name.startswith(("Django", "Quart")):
        request.applymarker(pytest.mark.xfail(reason=NO_ASGI, raises=TypeError))
    streams = Streams()
    errors: list[TypeError] = []

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2
        await asyncio.Event().wait()

    def answer(request: Any) -> Any:
        try:
            return streams.response(request, numbers)
        except TypeError as error:
            errors.append(error)
            raise

    assert host.endpoint is not None
    async with serving(host.endpoint(answer)) as url:
        async with connection(url, "/ask") as stream:
            await stream.until(
                lambda stream: errors or b"data: 2\n\n" in stream.body, "an error, or both numbers"
            )
            for error in errors:
                assert "docs/your-app.md" in str(error)
                raise error
            run = re.findall(rb"id: (.+)\.1\n", stream.body)[0].decode()
        await until(lambda: not streams.log.readers, "the run has no reader")
        async with connection(url, "/ask", headers=f"Last-Event-ID: {run}.1\r\n") as stream:
            await stream.until(lambda stream: b"data: 2\n\n" in stream.body, "number 2")
            assert b"data: 1\n" not in stream.body
            assert len(streams.log) == 1
    await streams.runs.aclose()


BLOCKS = [block for block in blocks("docs/your-app.md") if needs_a_host(block)]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_every_block_of_the_documentation_for_these_hosts_runs(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_django()
    module: Any = ModuleType(f"compat_{number}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Litestar looks it up there
    exec(compile(BLOCKS[number], f"docs/your-app.md, block {number}", "exec"), vars(module))
    async with client_of(module.app) as client:
        response = await client.get("/live/streams/counter?count=1")
        assert response.headers["content-location"].startswith("/live/runs/")
        assert (await client.get("/nowhere")).status_code == 404
        for path in re.findall(r"^# curl -N 127\.0\.0\.1:8000(\S*)", BLOCKS[number], re.MULTILINE):
            assert (await every_event(client, path))[-1].json() == {"status": "completed"}
