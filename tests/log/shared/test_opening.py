"""Shared runs that open slowly, with clients on two workers that wait for them."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from streams import Policy, Source, StreamError, source
from streams.errors import ShuttingDown, StoreDown, Unavailable
from streams.event import End, parse_frames
from streams.log import RunLog
from streams.log.store import Notice
from streams.runs import Runs
from tests.log.conftest import NewWorker
from tests.log.shared.workers import kill, workers
from tests.support.event_logs import DATA, SIZE, drained, opening, read_all
from tests.support.servers import until


def opened_by(
    answer: Callable[[], Awaitable[Any]], over: Callable[[], Awaitable[Any]] | None = None
) -> tuple[Source[..., Any], list[None]]:
    """A shared source that opens when `answer` returns, and a list that grows when it begins to.

    Between its two events, it waits until `over` returns.
    """
    openings: list[None] = []

    @source(shared=True)
    async def slow() -> Any:
        openings.append(None)
        await answer()
        return numbers()

    async def numbers() -> AsyncIterator[int]:
        yield 1
        if over is not None:
            await over()
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
        Unavailable("too many", retry_after=7),
        StreamError("too fast", status=429, retry_after=0.5),  # type: ignore[arg-type]
    ],
    ids=["451", "503", "429"],
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
        if isinstance(refusal, Unavailable):
            assert all(7 <= int(seconds or 0) <= 14 for seconds in retry_after)
        else:
            assert retry_after == {str(refusal.retry_after) if refusal.retry_after else None}
        async with httpx.AsyncClient(base_url=urls[1], timeout=20) as client:
            again = asyncio.create_task(client.get("/streams/slow"))
            await until(lambda: len(openings) == 2, "the next client starts a run")
            assert (await asyncio.wait_for(again, 10)).status_code == refusal.status


class Opening:
    """A shared run that worker `one` opens, and for which a client of `other` waits.

    `refuse` ends the opening, and returns when the store has the refusal.
    """

    def __init__(self, new_worker: NewWorker) -> None:
        self.gate = asyncio.Event()
        self.slow, self.openings = opened_by(self._fail)
        self.one, self.other = new_worker(), new_worker()
        sources = {"slow": (self.slow, Policy())}
        self.here, self.there = Runs(self.one, sources), Runs(self.other, sources)

    async def start(self, runs: Runs) -> RunLog:
        return await runs.start(await self.slow.job({}, None, policy=Policy()))

    async def _fail(self) -> None:
        await self.gate.wait()
        raise StreamError("not today", status=451)

    async def begin(self) -> None:
        self._starting = asyncio.ensure_future(self.start(self.here))
        await until(lambda: self.openings, "the source opens")

    async def wait(self) -> "asyncio.Task[RunLog]":
        waiting = asyncio.ensure_future(self.start(self.there))
        await until(lambda: self.other.readers, "the other worker waits")
        await self.other.written()
        return waiting

    async def refuse(self) -> None:
        self.gate.set()
        await asyncio.wait([self._starting])
        await self.one.written()


async def test_a_refusal_while_the_other_worker_does_not_reach_the_store_is_heard_later(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Opening(new_worker)
    await slow.begin()
    waiting = await slow.wait()
    failed = asyncio.Event()

    async def down(after: dict[str, int]) -> None:
        failed.set()
        raise StoreDown("down")

    monkeypatch.setattr(slow.other.store, "follow", down)
    for run in slow.other._work.followed.values():
        slow.other._work.queue_cursor(run)  # The current `follow` returns.
    await asyncio.wait_for(failed.wait(), 20)
    await slow.refuse()
    monkeypatch.undo()
    with pytest.raises(StreamError, match="not today"):
        await asyncio.wait_for(waiting, 10)


async def test_a_refusal_keeps_nothing_of_those_who_waited_for_it(new_worker: NewWorker) -> None:
    class Request: ...

    kept: list[weakref.ref[Request]] = []
    slow = Opening(new_worker)

    async def answer(runs: Runs) -> None:
        request = Request()
        kept.append(weakref.ref(request))
        with suppress(StreamError):
            await slow.start(runs)

    waiting = [asyncio.ensure_future(answer(slow.here)) for _ in range(3)]
    await until(lambda: slow.openings, "the source opens")
    waiting.append(asyncio.ensure_future(answer(slow.there)))
    await until(lambda: slow.other.readers, "the other worker waits")
    gc.disable()
    try:
        slow.gate.set()
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        del waiting
        await until(lambda: not any(ref() for ref in kept), "the requests are freed")
    finally:
        gc.enable()


@pytest.mark.parametrize("operation", ["find_by_key", "create"])
async def test_a_client_whose_shared_run_is_refused_before_it_can_wait_starts_another(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    slow = Opening(new_worker)
    await slow.begin()
    original = getattr(slow.other.store, operation)

    async def slow_reply(*arguments: Any) -> Any:
        monkeypatch.undo()
        run = await original(*arguments)
        await slow.refuse()
        return run

    async def find_nothing(unique_key: str) -> None: ...

    monkeypatch.setattr(slow.other.store, "find_by_key", find_nothing)
    monkeypatch.setattr(slow.other.store, operation, slow_reply)
    with pytest.raises(StreamError, match="not today"):
        await asyncio.wait_for(slow.start(slow.there), 10)
    assert len(slow.openings) == 2


async def test_a_worker_that_shuts_down_does_not_wait_for_the_opening_of_another_worker(
    new_worker: NewWorker,
) -> None:
    slow = Opening(new_worker)
    await slow.begin()
    waiting = await slow.wait()
    slow.there.cancel_openings()
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(waiting, 10)
    assert len(slow.here._producing) == 1
    await slow.refuse()


async def test_a_client_that_waited_on_another_worker_has_time_to_read_the_run(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `linger`, and without the client that started the run."""
    gate, over = asyncio.Event(), asyncio.Event()
    slow, openings = opened_by(gate.wait, over.wait)
    one, other = new_worker(), new_worker()
    here, there = Runs(one, {}), Runs(other, {})
    job = await slow.job({}, None, policy=Policy(linger=0))
    starting = asyncio.ensure_future(here.start(job))
    await until(lambda: openings, "the source opens")
    waiting = asyncio.ensure_future(there.start(job))
    (run,) = here._producing
    await until(lambda: run.log.readers, "the producer knows who waits")
    opens: Any = run.log.open

    def open_and_hear_again_who_waits() -> None:
        monkeypatch.undo()
        opens()
        log: Any = run.log
        log.on_cursor(other.worker, -1, 1)

    monkeypatch.setattr(run.log, "open", open_and_hear_again_who_waits)
    starting.cancel()
    gate.set()
    log = await asyncio.wait_for(waiting, 10)
    await until(lambda: not run.log.readers, "the producer knows that the client no longer waits")
    with log.read(-1) as reader:
        reading = asyncio.ensure_future(drained(reader))
        await until(lambda: run.log.readers, "the producer knows the reader")
        over.set()
        assert b"completed" in await asyncio.wait_for(reading, 10)


async def test_a_run_that_opened_and_dropped_its_first_events_has_opened_for_all(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await opening(one, window=5 * SIZE, drops_oldest=True)
    found = await other.find("r")
    log.append(b"start", log.info.start)
    log.open()
    while log.first < 5:
        log.append(None, DATA)
        await one.written()
    assert found.opening
    await asyncio.wait_for(found.opened(), 10)
    assert not found.opening


async def test_the_store_gets_no_event_of_a_run_that_has_not_opened(new_worker: NewWorker) -> None:
    one, other = new_worker(), new_worker()
    log = await opening(one)
    log.append(b"start", log.info.start)
    one._on_notice(Notice("claimed", "r"))  # It is outdated: this worker has claimed the run back.
    await asyncio.wait_for(one.written(), 5)
    found = await other.find("r")
    assert found.last == -1
    waiting = asyncio.ensure_future(found.opened())
    await until(lambda: other.readers, "the other worker waits")
    log.refuse(StreamError("not today"))
    with pytest.raises(StreamError, match="not today"):
        await asyncio.wait_for(waiting, 10)


async def test_a_reader_of_a_run_that_was_taken_over_and_refused_gets_an_end_event(
    new_worker: NewWorker,
) -> None:
    """This worker opened the run, and was counted as dead before the store had heard of that."""

    class Refuser:
        async def adopt(self, log: RunLog) -> None:
            log.refuse(Unavailable("the worker that opened this run died"))
            refused.set()

    refused = asyncio.Event()
    one, other = new_worker(), new_worker()
    log = await opening(one)
    log.append(b"start", log.info.start)
    await kill(one)
    log.open()
    with log.read(-1) as reader:
        reading = asyncio.ensure_future(drained(reader))
        other.register(Refuser())
        await other.open()
        await asyncio.wait_for(refused.wait(), 10)
        await other.written()
        await one.open()
        (end,) = parse_frames(await asyncio.wait_for(reading, 10))
    assert (end.name, log.status) == ("end", "failed")
    assert (End.decode(end.data).error or {})["type"] == "ProducerLost"


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
    job = await slow.job({}, None, policy=Policy())
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
        with pytest.raises(Unavailable, match="try again"):
            await asyncio.wait_for(waiting, 10)
        log = await there.start(job)
        assert b"data: 1\n" in await read_all(log)
    starting.cancel()
    for run in list(here._producing):
        run.hand_over()
    await asyncio.wait([starting])
