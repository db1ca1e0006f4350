"""Shared runs that open slowly, with clients on two workers that wait for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from streams import Policy, Source, StreamError, source
from streams.errors import StoreFull
from streams.run import Runs
from tests.log.conftest import NewWorker
from tests.log.shared.workers import kill, workers
from tests.support.event_logs import read_all
from tests.support.servers import until


def opened_by(answer: Callable[[], Awaitable[Any]]) -> tuple[Source[..., Any], list[None]]:
    """A shared source that opens when `answer` returns, and a list that grows when it begins to."""
    openings: list[None] = []

    @source(shared=True)
    async def slow() -> Any:
        openings.append(None)
        await answer()
        return numbers()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    return slow, openings


async def all_wait(apps: list[str], openings: list[None]) -> list[asyncio.Task[httpx.Response]]:
    """Requests of one client for each worker, all of which wait for the same opening."""

    async def get(url: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            return await client.get("/streams/slow")

    first = asyncio.create_task(get(apps[0]))
    await until(lambda: openings, "the source opens")
    others = [asyncio.create_task(get(url)) for url in apps]

    async def all_have_arrived() -> bool:
        async with httpx.AsyncClient(base_url=apps[1]) as client:
            return bool((await client.get("/health")).json()["readers"])

    async with asyncio.timeout(10):
        while not await all_have_arrived():
            await asyncio.sleep(0.01)
    return [first, *others]


async def test_a_client_on_another_worker_waits_for_the_opening_and_gets_all_events(
    store_url: str,
) -> None:
    gate = asyncio.Event()
    slow, openings = opened_by(gate.wait)
    async with workers(2, store_url, [slow]) as urls:
        waiting = await all_wait(urls, openings)
        assert not any(task.done() for task in waiting)
        gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert len(openings) == 1
    for answer in answers:
        assert answer.status_code == 200
        assert [line for line in answer.text.splitlines() if line.startswith("data: ")][1:] == [
            "data: 1",
            "data: 2",
            'data: {"status":"completed"}',
        ]


@pytest.mark.parametrize(
    "refusal",
    [
        StreamError("not today", status=451, why={"the": "law"}),
        StoreFull("too many", retry_after=7),
    ],
    ids=["451", "503"],
)
async def test_all_who_wait_for_an_opening_get_its_refusal_on_every_worker(
    store_url: str, refusal: StreamError
) -> None:
    gate = asyncio.Event()

    async def refuse() -> None:
        await gate.wait()
        raise refusal

    slow, openings = opened_by(refuse)
    async with workers(2, store_url, [slow]) as urls:
        waiting = await all_wait(urls, openings)
        gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert len(openings) == 1
        assert [answer.status_code for answer in answers] == [refusal.status] * 3
        problems = [answer.json() for answer in answers]
        assert problems[0]["detail"] == str(refusal)
        assert problems == [problems[0]] * 3
        retry_after = {answer.headers.get("retry-after") for answer in answers}
        assert retry_after == {str(refusal.retry_after) if refusal.retry_after else None}
        async with httpx.AsyncClient(base_url=urls[1], timeout=20) as client:
            again = asyncio.create_task(client.get("/streams/slow"))
            await until(lambda: len(openings) == 2, "the next client starts a run")
            assert (await asyncio.wait_for(again, 10)).status_code == refusal.status


@pytest.mark.parametrize("restartable", [True, False])
async def test_those_who_wait_for_an_opening_survive_the_death_of_the_worker_that_opens(
    new_worker: NewWorker, restartable: bool
) -> None:
    one, other = new_worker(), new_worker()
    openings: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        if len(openings) == 1:
            await asyncio.sleep(3600)
        yield 1

    @source(shared=True)
    async def continued(*, after: int = 0) -> Any:
        openings.append(True)
        if len(openings) == 1:
            await asyncio.sleep(3600)
        return numbers()

    @source(shared=True)
    async def mortal() -> Any:
        return await continued.function()

    slow = continued if restartable else mortal
    sources = {slow.name: (slow, Policy())}
    here, there = Runs(one, sources), Runs(other, sources)
    job = slow.job({}, None, policy=Policy())
    starting = asyncio.ensure_future(here.start(job))
    await until(lambda: openings, "the source opens")
    waiting = asyncio.ensure_future(there.start(job))
    await until(lambda: other.readers, "the other worker waits")
    await kill(one)
    if restartable:
        log = await asyncio.wait_for(waiting, 10)
        assert log.producer == other.worker
        assert b"data: 1\n" in await read_all(log)
    else:
        with pytest.raises(StoreFull, match="try again"):
            await asyncio.wait_for(waiting, 10)
        log = await there.start(job)
        assert b"data: 1\n" in await read_all(log)
    starting.cancel()
    for run in list(here._producing.values()):
        run.hand_over()
    await asyncio.wait([starting])
