"""Several workers with servers, in this process, that know each other only through a store."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx

from streams import Streams, source
from streams.sources import clock, counter
from tests.log.shared.workers import health_of, state_of, workers
from tests.support.servers import Connection, connection, every_event, serving, until
from tests.support.stores import shared_log


def has(data: bytes) -> tuple[Callable[[Connection], bool], str]:
    """For Connection.until(): the body ends with an event of this data."""
    return lambda stream: stream.body.endswith(b"data: %b\n\n" % data), f"event {data!r} is there"


async def test_another_worker_sends_a_run_from_any_event(store_url: str) -> None:
    async with workers(2, store_url, [counter]) as (one, other):
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
        names = [(await health_of(url))["worker"] for url in (one, other)]
        state, state_at_other = await state_of(one, run), await state_of(other, run)
        assert state == state_at_other
        assert state["status"] == "completed"
        assert state["producer"] == names[0] != names[1]


async def test_a_viewer_on_another_worker_gets_each_event_before_the_next_one_is_produced(
    store_url: str,
) -> None:
    viewer_has_it = asyncio.Event()

    @source
    async def in_step() -> AsyncIterator[int]:
        for number in range(100):
            yield number
            await viewer_has_it.wait()
            viewer_has_it.clear()

    async with workers(2, store_url, [in_step]) as (one, other):
        async with connection(one, "/streams/in_step") as stream:
            await stream.until(*has(b"0"))
            async with connection(other, f"/runs/{stream.run}") as view:
                for number in range(100):
                    await view.until(*has(b"%d" % number))
                    viewer_has_it.set()
                await view.until(*has(b'{"status":"completed"}'))


async def test_a_stop_on_a_third_worker_reaches_the_producer_and_every_viewer(
    store_url: str,
) -> None:
    closed = asyncio.Event()

    @source
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with workers(3, store_url, [endless]) as (one, other, third):
        async with (
            connection(one, "/streams/endless") as stream,
            httpx.AsyncClient() as client,
        ):
            await stream.until(*has(b"1"))
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(*has(b"1"))
                for _ in range(2):
                    response = await client.delete(f"{third}/runs/{stream.run}")
                    assert response.status_code == 204
                await until(closed.is_set, "the source is closed")
                for reader in (stream, view):
                    await reader.until(lambda reader: reader.terminated, "the stream has ended")
                    assert reader.body.endswith(
                        b'.2\nevent: end\ndata: {"status":"cancelled","reason":"stopped"}\n\n'
                    )
        assert (await state_of(one, stream.run))["status"] == "cancelled"


async def test_the_first_100_viewers_on_4_workers_start_one_shared_run(store_url: str) -> None:
    opened = 0

    @source(shared=True)
    async def slow() -> AsyncIterator[dict[str, Any]]:
        nonlocal opened
        opened += 1
        await anyio.sleep(0.05)
        return clock(0.05)

    runs = []
    async with workers(4, store_url, [slow]) as urls, anyio.create_task_group() as group:

        async def view(url: str) -> None:
            async with connection(url, "/streams/slow") as stream:
                await stream.until(
                    lambda stream: stream.body.count(b"\ndata: ") > 2, "three events", seconds=30
                )
                runs.append(stream.run)

        for n in range(100):
            group.start_soon(view, urls[n % 4])
        await until(lambda: len(runs) == 100, "all viewers have had three events", seconds=30)
    assert opened == 1
    assert len(set(runs)) == 1


async def test_a_run_continues_while_it_has_a_reader_on_any_worker(store_url: str) -> None:
    closed = asyncio.Event()
    produced = 0

    @source(linger=0.2)
    async def endless() -> AsyncIterator[int]:
        nonlocal produced
        try:
            while True:
                produced += 1
                yield 1
                await anyio.sleep(0.01)
        finally:
            closed.set()

    log = shared_log(store_url)
    async with (
        serving(Streams([endless], log=log), lifespan="on") as one,
        workers(1, store_url, [endless]) as (other,),
        AsyncExitStack() as stack,
    ):
        async with connection(one, "/streams/endless") as stream:
            await stream.until(*has(b"1"))
            run = await log.find(stream.run)
            await stack.enter_async_context(connection(other, f"/runs/{stream.run}"))
            await until(lambda: run.readers == 2, "the producer knows both readers")
        # 40 events take longer than the run would linger.
        enough = produced + 40
        await until(lambda: closed.is_set() or produced > enough, "40 more events", seconds=20)
        assert not closed.is_set()
        assert run.readers == 1
        await stack.aclose()
        await until(closed.is_set, "the source is closed", seconds=10)
    await log.aclose()


async def test_a_slow_reader_on_another_worker_pauses_the_producer(store_url: str) -> None:
    both_are_there = asyncio.Event()

    @source(window=50_000)
    async def flood() -> AsyncIterator[str]:
        yield "first"
        await both_are_there.wait()
        for _ in range(600):
            yield "x" * 10_000

    log = shared_log(store_url)
    async with (
        serving(Streams([flood], log=log), lifespan="on") as one,
        workers(1, store_url, [flood]) as (other,),
        connection(one, "/streams/flood") as quick,
    ):
        await quick.until(*has(b'"first"'))
        run = await log.find(quick.run)
        async with connection(other, f"/runs/{quick.run}", receive_buffer=32_768) as slow:
            await slow.until(*has(b'"first"'))
            both_are_there.set()
            task = asyncio.create_task(
                quick.until(lambda quick: quick.terminated, "the quick stream has ended", 30)
            )
            turns = 0

            def paused() -> bool:
                nonlocal turns
                turns = turns + 1 if run.is_full() else 0
                return turns > 200

            await until(paused, "the producer waits although one reader reads on", seconds=20)
            assert run.last < 600
            so_far = len(slow.received)
            await slow.until(
                lambda slow: len(slow.received) > so_far + 100_000, "100 kB more", seconds=20
            )
            assert b"event: gap" not in slow.received
        # The slow reader has left: it does not pause the producer any more.
        await task
        assert quick.body.count(b"\ndata: ") == 603
    await log.aclose()


FORKS_WORKERS = """
import asyncio, os, sys
from streams import Streams
from streams.sources import counter

streams = Streams([counter], log=sys.argv[1])
opened, is_open = os.pipe()
over, is_over = os.pipe()

async def serve():
    async with streams:
        os.write(is_open, b"1")
        os.close(is_open)
        os.read(over, 1)  # returns when both workers are open

for _ in range(2):
    if os.fork() == 0:
        os.close(is_over)
        asyncio.run(serve())
        os.write(1, b" " + streams.log.worker.encode())
        os._exit(0)
os.close(is_open)
os.read(opened, 1), os.read(opened, 1)
os.close(is_over)
os.wait(), os.wait()
"""


def test_workers_that_are_forked_after_the_app_was_imported_have_different_names(
    store_url: str,
) -> None:
    command = [sys.executable, "-c", FORKS_WORKERS, store_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert len(set(done.stdout.split())) == 2, done.stderr
