"""Hosts: Streams mounted in other frameworks, none of which runs its lifespan."""

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
from tests.compat.processes import ROOT
from tests.support.servers import client_of, connection, every_event, serving, until

every_host = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)


class Mounted:
    """Two Streams in a host that is being served."""

    def __init__(self, host: Host, url: str, streams: dict[str, Streams]) -> None:
        self.url = url
        self.prefix, self.other = streams
        self.streams = streams[self.prefix]
        self.other_streams = streams[self.other]


@asynccontextmanager
async def mounted(host: Host) -> AsyncIterator[tuple[Mounted, httpx.AsyncClient]]:
    # the second prefix is the beginning of a path inside, for hosts that guess
    streams = {
        f"{host.under}/live": Streams([counter]),
        f"{host.under}/streams": Streams([counter]),
    }
    async with (
        serving(host.app(streams)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        yield Mounted(host, url, streams), client


@every_host
@pytest.mark.column("streams and resumes")
async def test_a_stream_is_whole_and_resumes(host: Host) -> None:
    async with mounted(host) as (at, client):
        for slash in ("", "/"):
            path = f"{at.prefix}/streams/counter{slash}?count=5&interval=0"
            events = await every_event(client, path)
            assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(5)]
            again = await every_event(client, path, events[2].id)
            assert [event.id for event in again] == [event.id for event in events[3:]]


@every_host
@pytest.mark.column("one by one, and stops")
async def test_events_come_one_by_one_until_the_run_is_stopped(host: Host) -> None:
    async with mounted(host) as (at, client):
        path = f"{at.prefix}/streams/counter?interval=60"
        async with connection(at.url, path) as stream:
            await stream.until(lambda stream: b'{"number":0}' in stream.body)
            response = await client.delete(f"{at.prefix}/runs/{stream.run}")
            assert response.status_code == 204
            await stream.until(lambda stream: stream.terminated)
            assert b'{"status":"cancelled","reason":"stopped"}' in stream.body


@every_host
@pytest.mark.column("a disconnect is noticed")
async def test_a_disconnect_is_noticed_at_once(host: Host) -> None:
    async with mounted(host) as (at, _):
        async with connection(at.url, f"{at.prefix}/streams/counter?interval=60") as stream:
            await stream.until(lambda stream: b'{"number":0}' in stream.body)
            assert at.streams.runs.readers == 1
        await until(lambda: not at.streams.runs.readers, seconds=1)


@every_host
@pytest.mark.column("right URLs")
async def test_the_urls_that_it_gives_lead_back_to_it(host: Host) -> None:
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
@pytest.mark.column("two do not meet")
async def test_two_mounts_do_not_meet(host: Host) -> None:
    async with mounted(host) as (at, client):
        started = await client.get(f"{at.prefix}/streams/counter?count=1")
        path = started.headers["content-location"]
        elsewhere = path.replace(at.prefix, at.other, 1)
        assert (await client.get(elsewhere)).status_code == 404
        assert (await client.get(f"{at.other}/streams/counter?count=1")).status_code == 200
        assert (len(at.streams.log), len(at.other_streams.log)) == (1, 1)


@every_host
@pytest.mark.column("host's routes unharmed")
async def test_the_hosts_own_routes_are_unharmed(host: Host) -> None:
    async with mounted(host) as (_, client):
        response = await client.get("/hello")
        assert (response.status_code, response.text.strip('"')) == (200, "hello")
        assert (await client.get("/nowhere")).status_code == 404


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/compat.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_every_python_block_of_the_documentation_runs(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_django()
    module: Any = ModuleType(f"compat_{number}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Litestar looks for it there
    exec(compile(BLOCKS[number], f"docs/compat.md, block {number}", "exec"), vars(module))
    async with client_of(module.app) as client:
        response = await client.get("/live/streams/counter?count=1")
        assert response.headers["content-location"].startswith("/live/runs/")
        assert (await client.get("/nowhere")).status_code == 404
