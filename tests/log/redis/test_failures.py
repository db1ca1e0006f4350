"""redis_log.py when Redis itself fails: paused, killed, cut off, full, or somebody's replica."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest

from streams import Streams
from streams.errors import StoreDown
from streams.event import frame
from streams.log.redis import RedisLog
from streams.log.redis.connection import RedisLink
from streams.sources import counter
from tests.log.redis.test_deaths import numbers
from tests.log.redis.test_workers import workers
from tests.log.test_contract import new
from tests.support.servers import ROOT, connection, serving, until
from tests.support.valkey import Valkey, running_valkey

PATH = "/streams/counter?count=120&interval=0.01"
EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as valkey:
        yield valkey


async def through(valkey: Valkey, trouble: Any, path: str = PATH) -> list[list[int]]:
    """What viewers on the producer's worker and on another one get, with trouble in between."""
    async with workers(2, valkey.url, [counter]) as (one, other), AsyncExitStack() as stack:
        stream = await stack.enter_async_context(connection(one, path))
        await stream.until(lambda stream: len(numbers(stream.body)) > 5)
        view = await stack.enter_async_context(connection(other, f"/runs/{stream.run}"))
        await view.until(lambda view: len(numbers(view.body)) > 5)
        await trouble(one)
        await stream.until(lambda stream: stream.terminated, seconds=20)
        await view.until(lambda view: view.terminated, seconds=20)
        return [numbers(stream.body), numbers(view.body)]


async def test_readers_see_only_what_redis_has(valkey: Valkey) -> None:
    log = RedisLog(valkey.url)
    run = await new(log)
    with run.read(-1) as reader:
        reading = asyncio.ensure_future(anext(reader))
        valkey.pause()
        run.append(None, b"0")
        with anyio.move_on_after(0.2) as waited:
            await log.written()
        assert waited.cancelled_caught
        assert not reader.ready
        assert not reading.done()
        valkey.go_on()
        await asyncio.wait_for(log.written(), 5)
        assert await asyncio.wait_for(reading, 5) == frame(b"r", 0, None, b"0")
    await log.aclose()


async def test_a_stop_that_is_told_just_when_redis_goes_away_reaches_the_producer(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = RedisLog(valkey.url), RedisLog(valkey.url)
    run = await new(one)
    run.append(None, b"0")
    await one.written()
    found = await other.find("r")
    failures = 3
    call_all = RedisLink.call_all

    async def failing(self: RedisLink, *arguments: Any) -> Any:
        nonlocal failures
        if self is one._link and failures:
            failures -= 1
            raise StoreDown("gone just now")
        return await call_all(self, *arguments)

    monkeypatch.setattr(RedisLink, "call_all", failing)
    await found.cancel(b"{}")
    await until(lambda: not run.producing)
    assert not failures
    for log in (one, other):
        await log.aclose()


async def test_no_redis_at_start_is_one_clear_line(valkey: Valkey) -> None:
    valkey.kill()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "app:app", "--port", "0"),
        env={**os.environ, "STREAMS_LOG": valkey.url.replace("//", "//:secret@")},
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    (line,) = said.decode().splitlines()
    assert f"there is no Redis to talk to at {valkey.url}" in line
    assert "secret" not in line


async def test_streams_go_on_when_redis_was_paused_and_no_worker_is_taken_for_dead(
    valkey: Valkey,
) -> None:
    async def pause(url: str) -> None:
        valkey.pause()
        await asyncio.sleep(3)
        valkey.go_on()

    seen = await through(valkey, pause)
    assert seen == [list(range(120))] * 2


async def test_streams_go_on_when_redis_was_killed_and_restarted_with_its_data(
    valkey: Valkey,
) -> None:
    async def restart(url: str) -> None:
        valkey.kill()
        async with httpx.AsyncClient(base_url=url) as client:
            refused = await client.get("/streams/counter")
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "3"
            assert "Redis" in refused.json()["detail"]
            for path in ("/streams/counter", f"/runs/{'A' * 22}"):
                response = await client.get(path, headers=EVENT_SOURCE)
                assert (response.status_code, response.content) == (200, b"retry: 3000\n")
        valkey.start()

    assert await through(valkey, restart) == [list(range(120))] * 2


async def test_streams_go_on_when_all_connections_are_cut(valkey: Valkey) -> None:
    async def cut(url: str) -> None:
        for _ in range(5):
            valkey.command("CLIENT KILL TYPE normal")
            await asyncio.sleep(0.1)

    assert await through(valkey, cut) == [list(range(120))] * 2


@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("SCRIPT FLUSH", "PING"),
    ],
)
async def test_streams_wait_while_redis_refuses(valkey: Valkey, trouble: str, remedy: str) -> None:
    async def refuse(url: str) -> None:
        valkey.command(trouble)
        await asyncio.sleep(0.5)
        async with httpx.AsyncClient(base_url=url) as client:
            if trouble != "SCRIPT FLUSH":
                assert (await client.get("/streams/counter")).status_code == 503
        valkey.command(remedy)

    assert await through(valkey, refuse) == [list(range(120))] * 2


async def test_a_redis_that_comes_back_empty_breaks_the_streams_which_restart(
    valkey: Valkey,
) -> None:
    url = f"{valkey.url}?lease=0.3"
    async with workers(2, url, [counter]) as (one, other), AsyncExitStack() as stack:
        stream = await stack.enter_async_context(connection(one, PATH))
        await stream.until(lambda stream: len(numbers(stream.body)) > 5)
        view = await stack.enter_async_context(connection(other, f"/runs/{stream.run}"))
        await view.until(lambda view: len(numbers(view.body)) > 5)
        valkey.client.flushall()
        await stream.until(lambda stream: stream.terminated)
        await view.until(lambda view: view.terminated, seconds=10)
        assert b"event: end" not in stream.body + view.body, "a break, not an end"
        had = numbers(view.body)
        headers = f"Last-Event-ID: {stream.run}.{had[-1] + 1}\r\n"
        async with connection(other, PATH, headers=headers) as again:
            await again.until(lambda again: again.terminated, seconds=10)
        assert had + numbers(again.body) == list(range(120))


async def test_events_that_redis_has_lost_are_sent_again(valkey: Valkey) -> None:
    async with workers(1, valkey.url, [counter]) as (url,):
        async with connection(url, PATH) as stream:
            await stream.until(lambda stream: len(numbers(stream.body)) > 20)
            log = f"streams:log:{stream.run}"
            pipeline = valkey.client.pipeline()
            pipeline.delete(log)
            for n in range(5):
                pipeline.xadd(log, {"f": f"id: {stream.run}.{n}\n\n"}, id=f"{n + 1}-0")
            pipeline.hset(f"streams:run:{stream.run}", "last", "4")
            pipeline.execute()
            await stream.until(lambda stream: stream.terminated)
        assert numbers(stream.body) == list(range(120))
        entries: Any = valkey.client.xlen(log)
        assert entries == 122


async def test_without_lifespan_and_without_redis_the_first_use_is_refused_and_a_later_one_not(
    valkey: Valkey,
) -> None:
    valkey.kill()
    log = RedisLog(valkey.url)
    async with serving(Streams([counter], log=log)) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/streams/counter")).status_code == 503
        valkey.start()
        response = await client.get(f"{url}/streams/counter?interval=0")
        assert numbers(response.content) == list(range(10))
        await log.aclose()


async def test_a_worker_ends_though_redis_has_gone(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.LAST_WRITE_SECONDS", 0.1)
    with anyio.fail_after(10):
        async with workers(1, valkey.url, [counter]) as (url,):
            async with connection(url, PATH) as stream:
                await stream.until(lambda stream: numbers(stream.body))
                valkey.kill()
