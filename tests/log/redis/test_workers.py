"""redis_log.py with many workers: Streams that meet only in Redis, in this process or in others."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from streams import Streams, source
from streams.sources import clock, counter
from tests.support.servers import connection, every_event, serving, until
from tests.support.valkey import Valkey


@asynccontextmanager
async def workers(count: int, url: str, sources: Any, **options: Any) -> AsyncIterator[list[str]]:
    """Several workers in this process, each with a server and a log of its own; their URLs."""
    async with AsyncExitStack() as stack:
        urls = []
        for _ in range(count):
            streams = Streams(sources, log=url, **options)
            urls.append(await stack.enter_async_context(serving(streams, lifespan="on")))
        yield urls


async def state_of(url: str, run: str) -> Any:
    async with httpx.AsyncClient(base_url=url) as client:
        headers = {"Accept": "application/json"}
        return (await client.get(f"/runs/{run}", headers=headers)).json()


async def test_a_run_started_on_one_worker_is_read_on_another_from_any_place(
    redis_url: str,
) -> None:
    async with workers(2, redis_url, [counter]) as (one, other):
        async with httpx.AsyncClient() as client:
            events = await every_event(client, f"{one}/streams/counter?count=50&interval=0")
            run = events[0].json()["run"]
            for last in (None, f"{run}.0", f"{run}.25", f"{run}.50"):
                path = f"/runs/{run}" if last is None else "/streams/counter"
                again = await every_event(client, other + path, last)
                expected = events[0 if last is None else int(last.rpartition(".")[2]) + 1 :]
                assert [event.id for event in again] == [event.id for event in expected]
            end = await client.get(f"{other}/runs/{run}", headers={"Last-Event-ID": f"{run}.51"})
            assert end.status_code == 204
            names = [(await client.get(f"{url}/health")).json()["worker"] for url in (one, other)]
        one_says, other_says = await state_of(one, run), await state_of(other, run)
        assert one_says == other_says
        assert one_says["status"] == "completed"
        assert one_says["producer"] == names[0] != names[1]


async def test_live_events_reach_a_viewer_on_another_worker(redis_url: str) -> None:
    sent: dict[int, float] = {}
    got: dict[int, float] = {}

    @source
    async def paced() -> AsyncIterator[int]:
        for number in range(100):
            await anyio.sleep(0.005)
            sent[number] = time.perf_counter()
            yield number

    async with workers(2, redis_url, [paced]) as (one, other):
        async with connection(one, "/streams/paced") as stream:
            await stream.until(lambda stream: stream.body.endswith(b"\n\n"))
            async with connection(other, f"/runs/{stream.run}") as view:
                while not view.terminated:
                    before = view.body.count(b"\ndata: ")
                    await view.until(lambda view: view.body.count(b"\ndata: ") > before)  # noqa: B023
                    for number in range(before - 1, view.body.count(b"\ndata: ") - 1):
                        got.setdefault(number, time.perf_counter())
                    if b"event: end" in view.body:
                        break
    assert b'"completed"' in view.body
    late = sorted(got[n] - sent[n] for n in sent if n > 20)
    assert late[len(late) // 2] < 0.05


async def test_stop_on_a_third_worker_reaches_the_producer_and_every_viewer(
    redis_url: str,
) -> None:
    closed = asyncio.Event()

    @source
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with workers(3, redis_url, [endless]) as (one, other, third):
        async with (
            connection(one, "/streams/endless") as stream,
            httpx.AsyncClient() as client,
        ):
            await stream.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(lambda view: view.body.endswith(b"data: 1\n\n"))
                for _ in range(2):
                    response = await client.delete(f"{third}/runs/{stream.run}")
                    assert response.status_code == 204
                await asyncio.wait_for(closed.wait(), 1)
                for reader in (stream, view):
                    await reader.until(lambda reader: reader.terminated)
                    assert reader.body.endswith(
                        b'.2\nevent: end\ndata: {"status":"cancelled","reason":"stopped"}\n\n'
                    )
        assert (await state_of(one, stream.run))["status"] == "cancelled"


async def test_100_first_viewers_on_4_workers_start_one_shared_run(redis_url: str) -> None:
    opened = 0

    @source(shared=True)
    async def slow() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        await anyio.sleep(0.05)
        return clock(0.05)  # type: ignore[no-any-return]

    runs = []
    async with workers(4, redis_url, [slow]) as urls, anyio.create_task_group() as group:

        async def view(url: str) -> None:
            async with connection(url, "/streams/slow") as stream:
                await stream.until(lambda stream: stream.body.count(b"\ndata: ") > 2)
                runs.append(stream.run)

        for n in range(100):
            group.start_soon(view, urls[n % 4])
        await until(lambda: len(runs) == 100, seconds=20)
    assert opened == 1
    assert len(set(runs)) == 1


async def test_a_run_lives_while_it_has_a_reader_on_any_worker(redis_url: str) -> None:
    closed = asyncio.Event()

    @source(linger=0.2)
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await anyio.sleep(0.01)
        finally:
            closed.set()

    async with workers(2, redis_url, [endless]) as (one, other):
        async with connection(one, "/streams/endless") as stream:
            await stream.until(lambda stream: stream.body.endswith(b"\n\n"))
            view = connection(other, f"/runs/{stream.run}")
            reader = await view.__aenter__()
            await reader.until(lambda reader: reader.body.count(b"\ndata: ") > 3)
        count = reader.body.count(b"\ndata: ")
        await reader.until(lambda reader: reader.body.count(b"\ndata: ") > count + 40)
        assert not closed.is_set()
        assert (await state_of(one, stream.run))["readers"] == 1
        await view.__aexit__(None, None, None)
        await asyncio.wait_for(closed.wait(), 2)


async def test_the_producer_is_held_up_by_a_slow_reader_on_another_worker(redis_url: str) -> None:
    produced = 0
    both_are_there = asyncio.Event()

    @source(window=50_000)
    async def flood() -> AsyncIterator[str]:
        nonlocal produced
        yield "first"
        await both_are_there.wait()
        for _ in range(600):
            yield "x" * 10_000
            produced += 1

    async with workers(2, redis_url, [flood]) as (one, other):
        async with connection(one, "/streams/flood") as quick:
            await quick.until(lambda quick: quick.body)
            path = f"/runs/{quick.run}"
            async with connection(other, path, receive_buffer=32_768) as slow:
                await slow.until(lambda slow: b".1\n" in slow.body)
                both_are_there.set()
                task = asyncio.create_task(quick.until(lambda quick: quick.terminated, seconds=20))
                await until(lambda: produced > 20)
                before = -1
                while before != produced:
                    before = produced
                    await asyncio.sleep(0.2)
                assert produced < 600, "the reader on the other worker takes nothing"
                so_far = len(slow.received)
                await slow.until(lambda slow: len(slow.received) > so_far + 100_000, seconds=20)
                assert b"event: gap" not in slow.received
            await task  # who leaves holds nobody up
        assert quick.body.count(b"\ndata: ") == 603


async def test_500_readers_need_one_worker_two_connections_and_a_few(
    shared_valkey: Valkey, redis_url: str
) -> None:
    before = len(shared_valkey.client.client_list())
    async with workers(2, redis_url, [counter]) as (one, other), anyio.create_task_group() as group:
        reading = 0

        async def view(number: int) -> None:
            nonlocal reading
            path = "/streams/counter?interval=30&count=2"
            async with connection(one, path) as stream:
                await stream.until(lambda stream: b".1\n" in stream.body, seconds=20)
                async with connection(other, f"/runs/{stream.run}") as again:
                    await again.until(lambda again: b".1\n" in again.body, seconds=20)
                    reading += 2
                    await anyio.sleep_forever()

        for number in range(250):
            group.start_soon(view, number)
        await until(lambda: reading == 500, seconds=30)
        connections = len(shared_valkey.client.client_list()) - before
        group.cancel_scope.cancel()
    assert connections <= 2 * 5


@pytest.mark.parametrize("pathological", ["redis://127.0.0.1:1", "redis://"])
def test_no_redis_is_one_clear_error(pathological: str) -> None:
    with pytest.raises(Exception, match="Redis"):
        Streams(log=pathological)
