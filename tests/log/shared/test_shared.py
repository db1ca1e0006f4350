"""SharedLog on the side of the producer: writing, notices, and a store that fails.

All workers are in this process.
"""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest

from streams.errors import StoreDown, Unavailable, UnknownRun
from streams.event import COMPLETED, End, frame
from streams.log import Limits, RunInfo, Selection
from streams.log.shared import SharedLog
from streams.log.shared.work import APPEND_BYTES, APPEND_RUNS
from streams.log.store import Append, Missing, Notice, Outcome
from tests.log.conftest import NewWorker
from tests.log.shared.workers import until_async
from tests.support.event_logs import DATA, SIZE, drained, new, read_all
from tests.support.servers import until
from tests.support.stores import shared_log


async def until_gone(log: SharedLog, run: str) -> None:
    async def gone() -> bool:
        return await log.store.load([run]) == [None]

    await until_async(gone, f"the store has no run {run}")


async def test_more_runs_than_one_append_takes_are_all_written(new_worker: NewWorker) -> None:
    one, other = new_worker(), new_worker()
    logs = [await new(one, f"run{number}") for number in range(APPEND_RUNS + 8)]
    await one.written()
    for log in logs:
        log.append(None, b"0")
    await asyncio.wait_for(one.written(), 5)
    for log in logs:
        assert (await other.find(log.info.run)).last == log.last


@pytest.mark.parametrize(("more", "runs"), [(-1, [2]), (0, [1, 1])])
async def test_one_append_takes_no_further_run_after_256_kib(
    more: int, runs: list[int], new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    logs = [await new(one, run) for run in ("a", "b")]
    await one.written()
    appended: list[int] = []
    append = one.store.append

    async def noted(appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        appended.append(len(appends))
        return await append(appends)

    monkeypatch.setattr(one.store, "append", noted)
    around = len(frame(b"a", logs[0].last + 1, None, b""))
    logs[0].append(None, b"x" * (APPEND_BYTES + more - around))
    logs[1].append(None, b"1")
    await asyncio.wait_for(one.written(), 5)
    assert appended == runs


async def test_events_gather_for_the_stores_interval_between_two_appends(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    log = await new(one)
    began: list[float] = []
    append = one.store.append

    async def timed(appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        began.append(asyncio.get_running_loop().time())
        return await append(appends)

    monkeypatch.setattr(one.store, "append", timed)
    monkeypatch.setattr(one.store, "append_interval", 0.05)
    while len(began) < 5:
        log.append(None, b"0")
        await asyncio.sleep(0.005)
    log.close(COMPLETED)
    await asyncio.wait_for(one.written(), 5)
    assert min(after - before for before, after in pairwise(began)) >= 0.04
    assert (await read_all(log)).count(b"id: ") == log.last + 1


async def test_an_unexpected_error_is_logged_and_writing_continues(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        monkeypatch.undo()
        raise ZeroDivisionError

    one = new_worker()
    log = await new(one)
    monkeypatch.setattr(one.store, "append", broken)
    log.append(None, b"0")
    await until(lambda: "unexpected error" in caplog.text, "the error is logged")
    log.append(None, b"1")
    log.close(COMPLETED)
    assert (await read_all(log)).count(b"id: ") == 3


async def test_an_outdated_notice_does_not_end_a_run_of_this_worker(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    one._on_notice(Notice("forgotten", "r"))
    log.append(None, b"0")
    log.close(COMPLETED)
    await one.written()
    assert (await other.find("r")).status == "completed"
    assert await read_all(await other.find("r")) == await read_all(log)


async def test_a_look_at_a_run_while_its_end_is_being_written_does_not_reopen_it(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    log = await new(one)
    await one.written()
    append = one.store.append

    async def looked_at(appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        outcomes = await append(appends)
        assert await one.find("r") is log, "the store has the end, this worker not yet its reply"
        return outcomes

    monkeypatch.setattr(one.store, "append", looked_at)
    log.append(None, b"0")
    log.close(COMPLETED)
    with log.read(-1) as reader:
        assert (await asyncio.wait_for(drained(reader), 5)).count(b"id: ") == 2
        await asyncio.wait_for(one.written(), 5)
        assert log.status == "completed"
    assert (await read_all(log)).count(b"id: ") == 2


async def test_a_discard_without_a_reply_is_repeated(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    await new(one)

    async def no_reply(run: str) -> None:
        monkeypatch.undo()
        raise StoreDown("no reply")

    monkeypatch.setattr(one.store, "discard", no_reply)
    await one.discard("r")
    await until_gone(one, "r")


async def test_a_run_whose_creation_got_no_reply_is_discarded(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    create = one.store.create

    async def no_reply(info: RunInfo, limits: Limits) -> str:
        assert await create(info, limits) == "r"
        raise StoreDown("no reply")

    monkeypatch.setattr(one.store, "create", no_reply)
    with pytest.raises(StoreDown):
        await new(one)
    await until_gone(one, "r")


async def test_a_full_worker_discards_finished_runs_in_the_store_too(store_url: str) -> None:
    one, other = shared_log(store_url, max_runs=1), shared_log(store_url)  # with a usual lease
    (await new(one, "a")).close(COMPLETED)
    await one.written()
    await new(one, "b")
    with pytest.raises(UnknownRun):
        await other.find("a")
    await one.aclose()
    await other.aclose()


async def test_readers_see_only_events_that_the_store_has(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    run = await new(one)
    appending, go_on = asyncio.Event(), asyncio.Event()
    append = one.store.append

    async def held_up(appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        appending.set()
        await go_on.wait()
        return await append(appends)

    monkeypatch.setattr(one.store, "append", held_up)
    with run.read(-1) as reader:
        reading = asyncio.ensure_future(anext(reader))
        run.append(None, b"0")
        await asyncio.wait_for(appending.wait(), 5)
        assert not reader.ready
        assert not reading.done()
        go_on.set()
        await asyncio.wait_for(one.written(), 5)
        assert await asyncio.wait_for(reading, 5) == frame(b"r", 0, None, b"0")


@pytest.mark.parametrize("error", [StoreDown, Unavailable])
async def test_a_stop_on_another_worker_reaches_a_producer_whose_store_fails_for_a_while(
    new_worker: NewWorker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[Unavailable],
) -> None:
    one, other = new_worker(), new_worker()
    run = await new(one)
    run.append(None, b"0")
    await one.written()
    found = await other.find("r")
    failures = 3
    append = one.store.append

    async def failing(appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        nonlocal failures
        if failures:
            failures -= 1
            raise error("no reply")
        return await append(appends)

    monkeypatch.setattr(one.store, "append", failing)
    await found.cancel(End.cancelled("stopped"))
    await until(lambda: not run.producing, "the producer stops")
    assert not failures
    assert "unexpected error" not in caplog.text


async def test_a_run_that_has_lost_events_frees_its_room(new_worker: NewWorker) -> None:
    one = new_worker()
    log = await new(one, window=2 * SIZE, drops_oldest=True)
    for _ in range(5):
        log.append(None, DATA)
        await one.written()
    log.append(None, DATA)
    one._on_refusal(log, Missing(0))  # type: ignore[arg-type]
    assert not log.producing
    assert (len(one), one.bytes) == (0, 0)


async def test_a_run_that_was_closed_without_some_of_its_events_frees_its_room(
    new_worker: NewWorker,
) -> None:
    one = new_worker()
    log = await new(one)
    await one.written()
    (state,) = await one.store.load(["r"])
    assert state is not None
    for _ in range(5):
        log.append(None, DATA)
        await one.written()
    await one.store.close("r", COMPLETED, frees_key=False)
    one._update(log, msgspec.structs.replace(state, status="failed", last=2))  # type: ignore[arg-type]
    assert not log.producing
    assert (len(one), len(one._produced), one.bytes) == (0, 0, 0)


async def test_opening_a_run_again_appends_nothing(new_worker: NewWorker) -> None:
    one = new_worker()
    log = await new(one)
    log.close(COMPLETED)
    await one.written()
    assert one.bytes
    log.open()  # A source in a thread takes its first step for so long, perhaps until it has ended.
    await one.written()
    assert one.bytes


async def test_a_run_that_has_ended_here_is_not_selected_as_running(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, gate = new_worker(), asyncio.Event()
    older = await new(one, "older")
    log = await new(one)
    append = one.store.append

    async def append_later(appends: Sequence[Append]) -> Sequence[Outcome | Unavailable]:
        await gate.wait()
        return await append(appends)

    monkeypatch.setattr(one.store, "append", append_later)
    assert await one.select(Selection(status="running")) == [log, older]
    log.close(COMPLETED)
    assert await one.select(Selection(status="running")) == [older]
    assert await one.select(Selection(status="running", limit=1)) == [older], "it has another place"
    gate.set()
    await one.written()
