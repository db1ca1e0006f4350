"""Workers that die, and others that take over their runs; all workers are in this process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from streams import Policy, Source, source
from streams.errors import LogClosed, UnknownRun
from streams.event import COMPLETED, frame
from streams.log import Limits
from streams.log.store import State
from streams.runs import Runs
from tests.log.conftest import NewWorker
from tests.log.shared.workers import claimed, kill, until_async
from tests.support.event_logs import drained, info, new, read_all
from tests.support.servers import until


async def test_one_survivor_claims_the_run_and_appends_after_its_last_event(
    new_worker: NewWorker,
) -> None:
    one, other, third = new_worker(), new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    log.append(None, b"1")
    await one.written()
    adopted = await claimed(other, one)
    assert adopted.producing
    assert (adopted.last, adopted.producer) == (1, other.worker)
    adopted.append(None, b"2")
    adopted.close(COMPLETED)
    found = await third.find("r")
    assert found.producer == other.worker
    expected = [frame(b"r", n, None, b"%d" % n) for n in range(3)] + [
        frame(b"r", 3, b"end", COMPLETED.encode())
    ]
    assert await read_all(found) == b"".join(expected)


async def test_a_fenced_producer_is_notified_and_its_readers_get_only_committed_events(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    calls: list[bool] = []
    log.watch(lambda: calls.append(log.producing))
    log.append(None, b"0")
    await one.written()
    with log.read(-1) as reader:
        reading = asyncio.ensure_future(drained(reader))
        adopted = await claimed(other, one)
        adopted.append(None, b"1")
        log.append(None, b"never committed")
        await one.open()
        await until(lambda: calls and not calls[-1], "the watcher is called for the fenced run")
        with pytest.raises(LogClosed):
            log.append(None, b"2")
        adopted.close(COMPLETED)
        got = await asyncio.wait_for(reading, 5)
    assert got == await read_all(await other.find("r"))
    assert b"never committed" not in got
    assert got.count(b"id: ") == 3


async def test_a_takeover_that_fails_unexpectedly_is_tried_again(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()

    async def broken(worker: str) -> list[str]:
        monkeypatch.undo()
        raise RuntimeError("broken")

    monkeypatch.setattr(other.store, "runs_of", broken)
    assert (await claimed(other, one)).producing
    assert f"unexpected error while the runs of {one.worker} are taken over" in caplog.text


async def test_a_worker_can_claim_a_run_back_that_another_worker_had_claimed(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    adopted = await claimed(other, one)
    adopted.append(None, b"1")
    await other.written()
    await one.open()
    await until(lambda: not log.producing, "the first worker is fenced")
    again = await claimed(one, other)
    assert again is log
    assert again.producing
    again.append(None, b"2")
    again.close(COMPLETED)
    assert (await read_all(again)).count(b"id: ") == 4


async def test_a_run_that_was_taken_back_is_stopped_after_its_first_source_has_closed(
    new_worker: NewWorker,
) -> None:
    may_close, second_has_closed = asyncio.Event(), asyncio.Event()

    @source
    async def slow_to_close(*, after: int = 0) -> AsyncIterator[int]:
        try:
            yield after
            await anyio.sleep_forever()
        finally:
            if after:
                second_has_closed.set()
            else:
                await may_close.wait()

    one, other = new_worker(), new_worker()
    runs = Runs(one, {"slow_to_close": (slow_to_close, Policy())})
    log = await runs.start(await slow_to_close.job({}, None, policy=Policy()))
    await until(lambda: log.last == 1, "an event is there")
    await one.written()
    await claimed(other, one)
    await one.open()
    await until(lambda: not log.producing, "the run is lost")
    await kill(other)
    await until(lambda: log.last == 2, "the run is taken back", 10)
    may_close.set()
    await until(lambda: runs.health()["running"] == 1, "the first source has closed")
    await runs.stop(log.info.run)
    await asyncio.wait_for(second_has_closed.wait(), 5)
    await runs.aclose()


async def test_a_survivor_continues_restartable_runs_and_ends_the_others_as_failed(
    new_worker: NewWorker,
) -> None:
    one_is_dead = asyncio.Event()

    @source
    async def restartable(*, after: int = 0) -> AsyncIterator[dict[str, int]]:
        for number in range(after, 3):
            yield {"number": number}
            await one_is_dead.wait()

    @source
    async def mortal() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    @source
    async def fragile(*, after: int = 0) -> Any:
        if after:
            raise ValueError("a secret of the server")
        return mortal()

    one, other = new_worker(), new_worker()
    sources = {s.name: (s, Policy()) for s in (restartable, mortal, fragile)}
    here, there = Runs(one, sources), Runs(other, sources)
    logs = []
    for s, policy in sources.values():
        logs.append(await here.start(await s.job({}, None, policy=policy)))
    await one.written()
    limits = Limits(window=2**20, retain=300)
    described = info("A", source="restartable", arguments="{}", fingerprint=restartable.fingerprint)
    empty = await one.create(described, limits)
    await other.open()
    await kill(one)
    one_is_dead.set()
    ends = []
    for log in (*logs, empty):

        async def ended(run: str = log.info.run) -> bool:
            return (await other.find(run)).status != "running"

        await until_async(ended, f"the run of {log.info.source} has ended")
        await other.written()
        found = await other.find(log.info.run)
        ends.append((found.status, await read_all(found)))
    assert [status for status, _ in ends] == ["completed", "failed", "failed", "completed"]
    assert ends[0][1].count(b'"number":') == 3
    assert b"ProducerLost" in ends[1][1]
    assert b"ValueError" in ends[2][1]
    assert b"a secret of the server" not in ends[2][1]
    assert ends[3][1].count(b"event: start") == 1
    assert there.restarts == 3, "also the one that failed when it was opened again"
    for run in here._producing:
        run.hand_over()


async def test_a_survivor_does_not_continue_a_run_with_whose_arguments_its_source_cannot_restart(
    new_worker: NewWorker,
) -> None:
    @source(restartable=lambda arguments: not arguments["joined"])
    async def numbers(joined: bool, *, after: int = 0) -> AsyncIterator[int]:
        for number in range(after, 3):
            yield number
            await dead.wait()

    dead = asyncio.Event()
    one, other = new_worker(), new_worker()
    here, there = (Runs(log, {"numbers": (numbers, Policy())}) for log in (one, other))
    jobs = [
        await numbers.job({"joined": joined}, None, policy=Policy()) for joined in (True, False)
    ]
    logs = [await here.start(job) for job in jobs]
    await one.written()
    await other.open()
    await kill(one)
    dead.set()
    for log, status, count in zip(logs, ("failed", "completed"), (1, 3), strict=True):

        async def ended(run: str = log.info.run, status: str = status) -> bool:
            return (await other.find(run)).status == status

        await until_async(ended, f"the run is {status}")
        await other.written()
        events = await read_all(await other.find(log.info.run))
        assert (b"ProducerLost" in events) is (status == "failed")
        assert events.count(b"\ndata: ") == count + 2, "all that was sent can be read"
    assert there.restarts == 1
    for run in here._producing:
        run.hand_over()


async def test_a_survivor_does_not_continue_the_run_of_another_program(
    new_worker: NewWorker,
) -> None:
    def numbers(version: str) -> Source[..., Any]:
        @source(version=version)
        async def numbers(*, after: int = 0) -> AsyncIterator[int]:
            for number in range(after, 10):
                yield number
                await anyio.sleep_forever()

        return numbers

    one, other = new_worker(), new_worker()
    old, new_ = numbers("1"), numbers("2")
    here, there = (
        Runs(one, {"numbers": (old, Policy())}),
        Runs(other, {"numbers": (new_, Policy())}),
    )
    log = await here.start(await old.job({}, None, policy=Policy()))
    await one.written()
    await other.open()
    await kill(one)

    async def failed() -> bool:
        return (await other.find(log.info.run)).status == "failed"

    await until_async(failed, "the run has failed")
    await other.written()
    events = await read_all(await other.find(log.info.run))
    assert b"ProducerLost" in events
    assert b"data: 0\n" in events
    assert there.restarts == 0
    for run in here._producing:
        run.hand_over()


async def test_a_worker_that_shuts_down_continues_no_run_of_another(new_worker: NewWorker) -> None:
    @source
    async def restartable(*, after: int = 0) -> AsyncIterator[int]:
        yield after
        await anyio.sleep_forever()

    one, other = new_worker(), new_worker()
    sources = {"restartable": (restartable, Policy())}
    here, there = Runs(one, sources), Runs(other, sources)
    log = await here.start(await restartable.job({}, None, policy=Policy()))
    await one.written()
    await other.open()
    there.cancel_openings()
    await kill(one)
    await until(lambda: other._produced, "the other worker has claimed the run", 10)
    await there.aclose()
    assert there.restarts == 0
    assert not there._producing
    third = new_worker()
    survivors = Runs(third, sources)
    await third.open()
    await until(lambda: survivors.restarts, "a third worker continues the run", 10)
    assert (await third.find(log.info.run)).producing
    await survivors.aclose()
    for run in here._producing:
        run.hand_over()


async def test_an_outdated_reply_does_not_end_a_run_that_this_worker_has_claimed_since(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies can arrive on several connections, and be read in another order."""
    one, other = new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    await other.find("r")
    outdated = [await other.store.load([run]) for run in ("r", "unknown")]
    adopted = await claimed(other, one)
    created = await new(other, "unknown")

    async def outdated_reply(runs: list[str]) -> list[State | None]:
        return outdated.pop(0)

    monkeypatch.setattr(other.store, "load", outdated_reply)
    assert await other.find("r") is adopted
    with pytest.raises(UnknownRun):
        await other.find("unknown")
    monkeypatch.undo()
    for run in (adopted, created):
        run.append(None, b"1")
        await other.written()
        assert run.producing
    assert (await one.find("r")).producer == other.worker
