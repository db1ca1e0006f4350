"""A Redis that is paused, killed, cut off, full, or the replica of another one."""

import asyncio
import itertools
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest

from streams import Streams, source
from streams.sources import counter
from tests.log.shared.workers import NUMBER_19, TERMINATED, health_of, numbers, state_of, workers
from tests.support.servers import ROOT, connection, serving, until
from tests.support.stores import shared_log
from tests.support.valkey import Valkey, running_valkey

EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}

Trouble = Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]]


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running_valkey() as valkey:
        yield valkey


async def continues(valkey: Valkey, trouble: Trouble) -> None:
    """Checks that viewers on two workers miss nothing, and that no run is taken over.

    `trouble` gets the URL of the producer, and a function that waits until the source has produced
    20 more events. The run cannot end before the trouble is over.
    """
    over = asyncio.Event()
    produced = 0

    @source
    async def steady(*, after: int = 0) -> AsyncIterator[dict[str, int]]:
        nonlocal produced
        last = None
        while last is None or produced < last:
            yield {"number": produced}
            produced += 1
            if last is None and over.is_set():
                last = produced + 20
            await anyio.sleep(0.01)

    async def twenty_more() -> None:
        enough = produced + 20
        await until(lambda: produced >= enough, "the source has produced 20 more events", 10)

    async with workers(2, valkey.url, [steady]) as (one, other), AsyncExitStack() as stack:
        stream = await stack.enter_async_context(connection(one, "/streams/steady"))
        await stream.until(*NUMBER_19)
        view = await stack.enter_async_context(connection(other, f"/runs/{stream.run}"))
        await view.until(*NUMBER_19)
        await trouble(one, twenty_more)
        over.set()
        await stream.until(*TERMINATED)
        await view.until(*TERMINATED)
        assert [(await health_of(url))["restarts"] for url in (one, other)] == [0, 0]
    assert numbers(stream.body) == list(range(produced))
    assert numbers(view.body) == list(range(produced))


def counting(gate: asyncio.Event) -> Any:
    """A source that counts to 39, and waits for the gate before number 20."""

    @source
    async def counting(*, after: int = 0) -> AsyncIterator[dict[str, int]]:
        for number in range(after, 40):
            if number == 20:
                await gate.wait()
            yield {"number": number}

    return counting


async def test_a_server_that_does_not_reach_redis_exits_with_a_one_line_message(
    valkey: Valkey,
) -> None:
    valkey.kill()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "app:app", "--port", "0"),
        env={**os.environ, "STREAMS_LOG": valkey.url.replace("//", "//:secret@")},
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, printed = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 2
    (line,) = printed.decode().splitlines()
    assert f"Redis at {valkey.url} cannot be used" in line
    assert "secret" not in line


async def test_streams_continue_after_a_pause_of_redis_that_is_longer_than_the_lease(
    valkey: Valkey,
) -> None:
    async def pause(url: str, twenty_more: Callable[[], Awaitable[None]]) -> None:
        valkey.pause()
        await twenty_more()
        await asyncio.sleep(3)  # all leases expire
        valkey.unpause()

    await continues(valkey, pause)


async def test_streams_continue_when_redis_was_killed_and_restarted_with_its_data(
    valkey: Valkey,
) -> None:
    async def restart(url: str, twenty_more: Callable[[], Awaitable[None]]) -> None:
        valkey.kill()
        await twenty_more()
        async with httpx.AsyncClient(base_url=url) as client:
            refused = await client.get("/streams/steady")
            assert refused.status_code == 503
            assert 3 <= int(refused.headers["retry-after"]) <= 6
            assert "Redis" in refused.json()["detail"]
            for path in ("/streams/steady", f"/runs/{'A' * 22}"):
                response = await client.get(path, headers=EVENT_SOURCE)
                assert response.status_code == 200
                assert re.fullmatch(r"retry: [3-6]\d{3}\n", response.text)
        valkey.start()

    await continues(valkey, restart)


async def test_streams_continue_when_redis_closes_all_connections(valkey: Valkey) -> None:
    async def cut(url: str, twenty_more: Callable[[], Awaitable[None]]) -> None:
        for _ in range(3):
            valkey.command("CLIENT KILL TYPE normal")
            await twenty_more()

    await continues(valkey, cut)


@pytest.mark.parametrize(
    ("trouble", "remedy"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
)
async def test_streams_pause_while_redis_refuses_to_write(
    valkey: Valkey, trouble: str, remedy: str
) -> None:
    async def refuse(url: str, twenty_more: Callable[[], Awaitable[None]]) -> None:
        valkey.command(trouble)
        await twenty_more()
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/streams/steady")).status_code == 503
        valkey.command(remedy)

    await continues(valkey, refuse)


@pytest.mark.parametrize(
    ("trouble", "detail"),
    [
        (lambda valkey: valkey.command("CONFIG SET maxmemory 1"), "maxmemory"),
        (lambda valkey: valkey.client.set("streams:workers", "x"), "WRONGTYPE"),
        (lambda valkey: valkey.kill(), "ConnectionError"),
    ],
    ids=["full", "wrong type", "killed"],
)
async def test_the_details_of_an_error_of_redis_are_in_the_log_and_reach_no_client(
    valkey: Valkey,
    trouble: Callable[[Valkey], None],
    detail: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with workers(1, valkey.url, [counter]) as (url,), httpx.AsyncClient() as client:
        trouble(valkey)
        refused = await client.get(f"{url}/streams/counter")
        assert refused.status_code == 503
        assert refused.json()["detail"] == "Redis cannot be used now; try again in 3 s"
        logged = [record.getMessage() for record in caplog.records if record.name == "streams"]
        assert f"Redis at {valkey.url} cannot be used now" in logged[0]
        assert detail in logged[0]


async def test_streams_continue_when_redis_has_lost_the_scripts(valkey: Valkey) -> None:
    async def flush(url: str, twenty_more: Callable[[], Awaitable[None]]) -> None:
        valkey.command("SCRIPT FLUSH")
        await twenty_more()

    await continues(valkey, flush)


async def test_when_redis_comes_back_empty_the_streams_break_off_and_the_run_is_gone(
    valkey: Valkey,
) -> None:
    gate = asyncio.Event()
    url = f"{valkey.url}?lease=0.3"
    async with workers(2, url, [counting(gate)]) as (one, other), AsyncExitStack() as stack:
        stream = await stack.enter_async_context(connection(one, "/streams/counting"))
        await stream.until(*NUMBER_19)
        view = await stack.enter_async_context(connection(other, f"/runs/{stream.run}"))
        await view.until(*NUMBER_19)
        valkey.client.flushall()
        await stream.until(*TERMINATED)
        await view.until(*TERMINATED)
        assert b"event: end" not in stream.body + view.body, "the streams do not end, they break"
        async with httpx.AsyncClient(base_url=other) as client:
            headers = {"Last-Event-ID": f"{stream.run}.20"}
            assert (await client.get("/streams/counting", headers=headers)).status_code == 410


async def test_a_run_that_redis_has_lost_part_of_fails_for_everyone(valkey: Valkey) -> None:
    gate = asyncio.Event()

    @source(shared=True)
    async def endless() -> AsyncIterator[dict[str, int]]:
        for number in itertools.count():
            if number == 20:
                await gate.wait()
            yield {"number": number}
            await anyio.sleep(0.001)

    async with workers(2, f"{valkey.url}?lease=0.3", [endless], window=500) as (one, other):
        path = "/streams/endless"
        async with connection(one, path) as stream, connection(other, path) as view:
            await stream.until(*NUMBER_19)
            await view.until(*NUMBER_19)
            pipeline = valkey.client.pipeline()
            log = f"streams:log:{stream.run}"
            pipeline.delete(log)
            pipeline.xadd(log, {"f": f"id: {stream.run}.0\n\n"}, id="1-0")
            pipeline.hset(f"streams:run:{stream.run}", mapping={"last": "0", "first": "0"})
            pipeline.execute()
            gate.set()
            await stream.until(*TERMINATED)
            await view.until(*TERMINATED)
            lost = b'event: end\ndata: {"status":"failed","error":{"type":"ProducerLost"'
            assert lost in stream.body
            assert lost in view.body
        assert (await state_of(other, stream.run))["status"] == "failed"
        async with connection(other, path) as again:
            await again.until(*NUMBER_19)
            assert again.run != stream.run
        assert [(await health_of(url))["running"] for url in (one, other)] == [0, 1]


async def test_a_producer_sends_events_again_that_redis_has_lost(valkey: Valkey) -> None:
    gate = asyncio.Event()
    async with workers(1, valkey.url, [counting(gate)]) as (url,):
        async with connection(url, "/streams/counting") as stream:
            await stream.until(*NUMBER_19)
            log = f"streams:log:{stream.run}"
            pipeline = valkey.client.pipeline()
            pipeline.delete(log)
            for n in range(5):
                pipeline.xadd(log, {"f": f"id: {stream.run}.{n}\n\n"}, id=f"{n + 1}-0")
            pipeline.hset(f"streams:run:{stream.run}", "last", "4")
            pipeline.execute()
            gate.set()
            await stream.until(*TERMINATED)
        assert numbers(stream.body) == list(range(40))
        entries: Any = valkey.client.xlen(log)
        assert entries == 42


async def test_without_a_lifespan_a_request_is_refused_while_redis_is_down_and_a_later_one_is_not(
    valkey: Valkey,
) -> None:
    valkey.kill()
    log = shared_log(valkey.url)
    async with serving(Streams([counter], log=log)) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/streams/counter")).status_code == 503
        valkey.start()
        response = await client.get(f"{url}/streams/counter?interval=0")
        assert numbers(response.content) == list(range(10))
        await log.aclose()


async def test_a_worker_shuts_down_while_redis_is_down(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.shared.LAST_WRITE_SECONDS", 0.1)
    with anyio.fail_after(30):
        async with workers(1, valkey.url, [counter]) as (url,):
            async with connection(url, "/streams/counter?count=1000") as stream:
                await stream.until(lambda stream: numbers(stream.body), "a number is there")
                valkey.kill()
