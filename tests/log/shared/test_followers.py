"""Readers whose run another worker produces; all workers are in this process."""

import asyncio
from collections.abc import Collection, Sequence

import msgspec
import pytest

from streams.errors import LostHistory, StoreDown, StoreFull, UnknownRun
from streams.event import COMPLETED, End
from streams.log.store import Cursor, Entry, State, Workers
from tests.log.conftest import NewWorker
from tests.log.shared.workers import AdoptNothing, kill, until_async
from tests.support.event_logs import DATA, SIZE, drained, new, read_all
from tests.support.servers import until


async def test_the_cursor_of_a_dead_worker_does_not_pause_the_producer(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    one.register(AdoptNothing())
    log = await new(one, window=5 * SIZE)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")
    with found.read(-1):
        await until(lambda: log.readers == 1, "the producer knows the reader")
        with log.read(-1) as reader:
            reading = asyncio.ensure_future(drained(reader))
            while not log.is_full():
                log.append(None, DATA)
            await one.written()
            await until(lambda: log.is_full() and log.first == 0, "the producer has to wait")
            await kill(other)
            await asyncio.wait_for(log.room(), 5)
            assert log.readers == 1
            log.close(COMPLETED)
            await asyncio.wait_for(reading, 5)


async def test_the_cursor_of_a_dead_worker_leaves_the_store_even_if_that_fails_at_first(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = new_worker(), new_worker()
    one.register(AdoptNothing())
    log = await new(one)
    with (await other.find("r")).read(-1):
        await until(lambda: log.readers == 1, "the producer knows the reader")
        refused = asyncio.Event()

        async def no_reply(cursors: list[Cursor]) -> list[bool]:
            monkeypatch.undo()
            refused.set()
            raise StoreDown("no reply")

        monkeypatch.setattr(one.store, "set_cursors", no_reply)
        await kill(other)
        await asyncio.wait_for(refused.wait(), 10)

        async def gone() -> bool:
            (state,) = await one.store.load(["r"])
            return state is not None and not state.cursors

        await until_async(gone, "the store has no cursor of the dead worker")
        await until(lambda: log.readers == 0, "the producer has forgotten the dead worker")


async def test_the_cursor_of_a_worker_that_comes_during_a_renewal_stays(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    renew = one.store.renew
    renewals: list[Workers] = []
    renewing = asyncio.Event()

    async def renewed(runs: Collection[str]) -> Workers:
        """At first answers only when a worker has come that the answer does not contain."""
        renewing.set()
        workers = await renew(runs)
        if not renewals:
            await until(lambda: log.readers == 1, "the producer knows the reader", 10)
            workers = msgspec.structs.replace(workers, all={one.worker})
        renewals.append(workers)
        return workers

    monkeypatch.setattr(one.store, "renew", renewed)
    await asyncio.wait_for(renewing.wait(), 10)
    with (await other.find("r")).read(-1):
        await until(lambda: len(renewals) > 2, "the lease was renewed twice more", 10)
        assert log.readers == 1
        (state,) = await one.store.load(["r"])
        assert state is not None
        assert state.cursors.keys() == {other.worker}


async def test_a_new_worker_sends_no_cursor_before_the_store_knows_it(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    renew, set_cursors = other.store.renew, other.store.set_cursors
    may_renew = asyncio.Event()
    calls: list[str] = []

    async def late(runs: Collection[str]) -> Workers:
        await may_renew.wait()
        calls.append("renew")
        return await renew(runs)

    async def recorded(cursors: list[Cursor]) -> list[bool]:
        calls.append("set_cursors")
        return await set_cursors(cursors)

    monkeypatch.setattr(other.store, "renew", late)
    monkeypatch.setattr(other.store, "set_cursors", recorded)
    with (await other.find("r")).read(-1):
        await until(lambda: other._work.moved, "the cursor is to be sent")
        may_renew.set()
        await until(lambda: log.readers == 1, "the producer knows the reader")
    assert calls[:2] == ["renew", "set_cursors"]


async def test_a_worker_with_a_slow_reader_loads_no_more_than_its_window(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one, window=5 * SIZE)
    found = await other.find("r")

    async def produce() -> None:
        for _ in range(60):
            await log.room()
            log.append(None, DATA)
        log.close(COMPLETED)

    with found.read(-1) as slow:
        await until(lambda: log.readers == 1, "the producer knows the reader")
        producing = asyncio.create_task(produce())
        frames = b""
        while b"event: end" not in frames:
            await until(
                lambda: log.is_full() or not log.producing, "the producer has to wait, or is done"
            )
            frames += await asyncio.wait_for(anext(slow), 5)
            assert other.bytes <= 9 * SIZE
        await producing
    assert frames.count(b"id: ") == 61


@pytest.mark.parametrize("quick_is_elsewhere", [False, True])
async def test_a_reader_that_reads_nothing_holds_up_no_reader_on_another_worker(
    new_worker: NewWorker, quick_is_elsewhere: bool
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one, shared=True, window=5 * SIZE)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")
    quick_log, slow_log = (found, log) if quick_is_elsewhere else (log, found)
    with slow_log.read(-1) as slow, quick_log.read(-1) as quick:
        await until(lambda: log.readers == 2, "the producer knows both readers")
        reading = asyncio.ensure_future(drained(quick))
        for _ in range(59):
            await asyncio.wait_for(log.room(), 10)
            log.append(None, DATA)
            await one.written()
        log.close(COMPLETED)
        assert (await asyncio.wait_for(reading, 10)).count(b"id: ") == 61
        await one.written()
        with pytest.raises(LostHistory) as lost:
            await asyncio.wait_for(drained(slow), 10)
        assert lost.value.first > 40
    rest = await read_all(slow_log, lost.value.first - 1)
    assert rest.count(b"id: ") == 61 - lost.value.first


async def test_the_only_reader_of_a_shared_run_misses_nothing_on_another_worker(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one, shared=True, window=5 * SIZE)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")

    async def produce() -> None:
        for _ in range(59):
            await log.room()
            log.append(None, DATA)
        log.close(COMPLETED)

    with found.read(-1) as slow:
        await until(lambda: log.readers == 1, "the producer knows the reader")
        producing = asyncio.create_task(produce())
        frames = b""
        while b"event: end" not in frames:
            await until(
                lambda: log.is_full() or not log.producing, "the producer has to wait, or is done"
            )
            frames += await asyncio.wait_for(anext(slow), 5)
        await producing
    assert frames.count(b"id: ") == 61


async def test_a_run_makes_room_only_when_nobody_watches_it_on_any_worker(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(max_runs=1), new_worker()
    log = await new(one)
    log.append(None, DATA)
    await one.written()
    with (await other.find("r")).read(-1):
        await until(lambda: log.readers == 1, "the producer knows the reader")
        with pytest.raises(StoreFull):
            await new(one, "s")
        assert log.producing
    await until(lambda: log.readers == 0, "the producer knows that the reader has left")
    await new(one, "s")
    assert not log.producing
    with pytest.raises(UnknownRun):
        await other.find("r")


async def test_a_reader_learns_of_evicted_events_when_it_loads_them(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one, window=5 * SIZE, drops_oldest=True)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")
    for _ in range(50):
        log.append(None, DATA)
        await one.written()
    with pytest.raises(LostHistory) as lost:
        await read_all(found)
    assert lost.value.first == log.first == lost.value.missed
    with pytest.raises(LostHistory), found.read(-1):
        pass


async def test_a_reader_loses_what_is_evicted_while_its_worker_is_stopped(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    one.register(AdoptNothing())
    log = await new(one, window=5 * SIZE, drops_oldest=True)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")
    with found.read(0) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await until(lambda: log.readers == 1, "the producer knows the reader")
        await kill(other)
        await until(lambda: log.readers == 0, "the producer has forgotten the dead worker")
        for _ in range(50):
            log.append(None, DATA)
            await one.written()
        await other.open()
        with pytest.raises(LostHistory):
            await asyncio.wait_for(waiting, 5)
    assert found.readers == 0


async def test_discarding_a_run_ends_its_readers_on_all_workers(new_worker: NewWorker) -> None:
    one, other, third = new_worker(), new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    found = await other.find("r")
    with found.read(0) as reader:
        waiting = asyncio.ensure_future(anext(reader, None))
        await until(lambda: log.readers == 1, "the producer knows the reader")
        await third.discard("r")
        assert await asyncio.wait_for(waiting, 5) is None
    await until(lambda: not log.producing, "the producer is notified")
    with pytest.raises(UnknownRun):
        await other.find("r")


async def test_a_reader_ends_when_the_run_was_discarded_before_it_attached(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    found = await other.find("r")
    await one.discard("r")
    assert await read_all(found, 0) == b""
    await found.cancel(End.cancelled("stopped"))


async def test_a_reader_learns_that_the_store_has_lost_the_events_that_it_needs(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    for data in (b"0", b"1", b"2"):
        log.append(None, data)
    await one.written()
    found = await other.find("r")
    (state,) = await other.store.load(["r"])
    assert state is not None

    async def nothing(run: str, after: int, count: int) -> list[Entry]:
        return []

    async def emptied(runs: Sequence[str]) -> list[State | None]:
        return [msgspec.structs.replace(state, last=-1)]

    monkeypatch.setattr(other.store, "read", nothing)
    monkeypatch.setattr(other.store, "load", emptied)
    with found.read(-1) as reader:
        end = await asyncio.wait_for(drained(reader), 5)
    assert found.status == "failed"
    assert end.count(b"id: ") == 1
    assert b'event: end\ndata: {"status":"failed","error":{"type":"ProducerLost"' in end
