"""The contract of an event log, tested on every implementation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streams import EventLog, MemoryLog
from streams.errors import LogClosed, LostHistory, RunGone, StoreFull, StreamError, UnknownRun
from streams.event import COMPLETED, NO_READER, SHUTDOWN, End, EventId, frame
from streams.log import Limits, RunInfo, RunLog, Selection
from streams.log.shared import SharedLog
from tests.support.event_logs import (
    DATA,
    SELECTED_RUNS,
    SELECTIONS,
    SIZE,
    drained,
    info,
    new,
    opening,
    read_all,
)
from tests.support.list_log import ListLog
from tests.support.servers import until
from tests.support.stores import shared_log

MakeLog = Callable[..., EventLog]

CANCELLED = End.cancelled("stopped")


@pytest.fixture(params=[MemoryLog, ListLog, "redis", "sqlite"])
async def make_log(request: pytest.FixtureRequest) -> AsyncIterator[MakeLog]:
    made: list[EventLog] = []

    def make(**options: Any) -> EventLog:
        if isinstance(request.param, str):
            made.append(shared_log(request.getfixturevalue(f"{request.param}_url"), **options))
        else:
            made.append(request.param(**options))
        return made[-1]

    yield make
    for log in made:
        await log.aclose()


async def settled(store: EventLog) -> None:
    """Waits until readers see what has been appended, where that takes a while."""
    if isinstance(store, SharedLog):
        await store.written()


async def long_run(store: EventLog) -> RunLog:
    """A run that has ended, with 450 kB of events."""
    log = await new(store)
    for _ in range(500):
        log.append(None, DATA)
    log.close(COMPLETED)
    await settled(store)
    return log


async def test_events_are_numbered_from_0_and_a_reader_gets_those_after_its_position(
    make_log: MakeLog,
) -> None:
    log = await new(make_log())
    for data in (b"0", b"1", b"2"):
        log.append(None, data)
    log.close(COMPLETED)
    assert (log.first, log.last, log.status) == (0, 3, "completed")
    frames = [frame(b"r", n, None, b"%d" % n) for n in range(3)] + [
        frame(b"r", 3, b"end", COMPLETED.encode())
    ]
    for after in range(-1, 4):
        assert await read_all(log, after) == b"".join(frames[after + 1 :])


async def test_a_log_that_can_be_used_passes_its_check(make_log: MakeLog) -> None:
    await make_log().check()


@pytest.mark.parametrize("store", [MemoryLog(), ListLog()])
async def test_append_returns_whether_it_woke_a_reader(store: EventLog) -> None:
    log = await new(store)
    with log.read(-1) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert log.append(None, b"1"), "a reader waits"
        assert not log.append(None, b"2"), "the reader is already awake"
        await asyncio.wait_for(waiting, 5)


async def test_a_reader_gets_each_event_once_from_replay_to_live(make_log: MakeLog) -> None:
    log = await new(make_log())
    log.append(None, b"0")
    got = []

    async def read() -> None:
        with log.read(-1) as reader:
            async for frames in reader:
                got.append(frames)

    task = asyncio.create_task(read())
    await until(lambda: got, "the reader has the replay")
    log.append(None, b"1")
    log.append(None, b"2")
    size = sum(len(frame(b"r", n, None, b"0")) for n in range(3))
    await until(lambda: len(b"".join(got)) == size, "the reader has all three events")
    log.close(COMPLETED)
    await asyncio.wait_for(task, 5)
    assert b"".join(got) == await read_all(log)


async def test_a_reader_that_catches_up_lets_others_have_their_turns(make_log: MakeLog) -> None:
    log = await long_run(make_log())
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    assert len(await read_all(log)) / 2**15 < turns
    counting.cancel()


async def test_a_reader_misses_nothing_after_a_cancelled_step(make_log: MakeLog) -> None:
    log = await long_run(make_log())
    with log.read(-1) as reader:
        step = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert step.cancel(), "others have their turn before the reader has its piece"
        await asyncio.wait([step])
        assert b"".join([frames async for frames in reader]) == await read_all(log)


async def test_nothing_can_be_appended_to_a_closed_log(make_log: MakeLog) -> None:
    log = await new(make_log())
    log.close(End("failed"))
    with pytest.raises(LogClosed):
        log.append(None, b"1")
    with pytest.raises(LogClosed):
        log.close(COMPLETED)
    assert (log.status, log.last) == ("failed", 0)


async def test_a_finished_run_is_forgotten_after_retain_seconds(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, retain=0.05)
    log.close(COMPLETED)
    await settled(store)
    assert await store.find("r") is log
    await until(lambda: not len(store), "the run is forgotten")
    with pytest.raises(UnknownRun):
        await store.find("r")
    assert store.bytes == 0


async def test_an_unknown_run_is_not_found(make_log: MakeLog) -> None:
    with pytest.raises(UnknownRun):
        await make_log().find("r")


async def test_those_who_wait_for_a_run_go_on_when_it_has_opened(make_log: MakeLog) -> None:
    log = await opening(make_log())
    assert log.opening
    log.append(b"start", b"{}")
    waiting = [asyncio.ensure_future(log.opened()) for _ in range(2)]
    await asyncio.sleep(0)
    log.open()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting, log.opened())
    assert not log.opening
    log.close(COMPLETED)
    assert b"event: start" in await read_all(log)


async def test_those_who_wait_for_a_run_get_its_refusal_and_nobody_else_finds_it(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await opening(store)
    log.append(b"start", b"{}")
    waiting = [asyncio.ensure_future(log.opened()) for _ in range(2)]
    await asyncio.sleep(0)
    log.refuse(StreamError("not today", status=451, retry_after=7, member=1))
    for task in (*waiting, asyncio.ensure_future(log.opened())):
        with pytest.raises(StreamError, match="not today") as refusal:
            await asyncio.wait_for(task, 5)
        assert (refusal.value.status, refusal.value.retry_after) == (451, 7)
        assert refusal.value.members == {"member": 1}
    assert not log.producing
    await settled(store)
    with pytest.raises(UnknownRun):
        await store.find("r")
    await until(lambda: not len(store), "the run is forgotten")
    assert store.bytes == 0


async def test_a_run_that_is_cancelled_while_it_opens_is_refused(make_log: MakeLog) -> None:
    store = make_log()
    log = await opening(store)
    waiting = asyncio.ensure_future(log.opened())
    await asyncio.sleep(0)
    await log.cancel(CANCELLED)
    with pytest.raises(RunGone, match="stopped before it started"):
        await asyncio.wait_for(waiting, 5)
    assert not log.producing
    await until(lambda: not len(store), "the run is forgotten")


async def test_those_who_wait_for_a_run_learn_that_it_was_discarded(make_log: MakeLog) -> None:
    store = make_log()
    waiting = asyncio.ensure_future((await opening(store)).opened())
    await asyncio.sleep(0)
    await store.discard("r")
    with pytest.raises(UnknownRun):
        await asyncio.wait_for(waiting, 5)


async def test_a_run_that_is_closed_has_opened(make_log: MakeLog) -> None:
    log = await opening(make_log())
    log.close(COMPLETED)
    await asyncio.wait_for(log.opened(), 5)
    assert b"event: end" in await read_all(log)


async def test_discarding_a_run_ends_its_readers_and_frees_its_id(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store)
    log.append(None, DATA)
    with log.read(0) as reader:
        waiting = asyncio.ensure_future(anext(reader, None))
        await asyncio.sleep(0)
        await store.discard("r")
        assert await asyncio.wait_for(waiting, 5) is None
    await store.discard("r")
    assert (len(store), store.bytes) == (0, 0)
    await new(store)


async def test_the_producer_waits_when_it_is_a_window_ahead_of_the_slowest_reader(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await new(store, window=5 * SIZE)
    with log.read(-1) as slow, log.read(-1) as quick:
        while not log.is_full():
            log.append(None, DATA)
        assert 5 <= log.last <= 6
        await settled(store)
        room = asyncio.ensure_future(log.room())
        while quick.ready:
            await anext(quick)
        ahead = asyncio.ensure_future(drained(quick))
        await asyncio.sleep(0)
        assert not room.done(), "the slow reader has read nothing"
        assert (await anext(slow)).startswith(b"id: r.0\n"), (
            "no event that it has not read is dropped"
        )
        rest = asyncio.ensure_future(drained(slow))
        await asyncio.wait_for(room, 5)
        log.close(COMPLETED)
        end = await read_all(log, log.last - 1)
        assert (await asyncio.wait_for(rest, 5)).endswith(end)
        assert await asyncio.wait_for(ahead, 5) == end


async def test_the_producer_continues_when_the_slowest_reader_detaches(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, window=3 * SIZE)
    with log.read(-1) as quick:
        with log.read(-1):
            while not log.is_full():
                log.append(None, DATA)
            await settled(store)
            while quick.ready:
                await anext(quick)
            # Asking for more means that the quick reader has read what it got.
            waiting = asyncio.ensure_future(anext(quick))
            room = asyncio.ensure_future(log.room())
            await asyncio.sleep(0)
            assert not room.done()
        await asyncio.wait_for(room, 5)
        log.append(None, DATA)
        await asyncio.wait_for(waiting, 5)


async def test_without_readers_the_producer_waits_when_the_window_is_full(
    make_log: MakeLog,
) -> None:
    log = await new(make_log(), window=3 * SIZE)
    while not log.is_full():
        log.append(None, DATA)
    room = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    assert not room.done()
    assert log.first == 0
    with log.read(log.last):
        await asyncio.wait_for(room, 5)


async def produced(store: EventLog, log: RunLog, count: int) -> None:
    """Appends so many events as its readers allow, and the `end` event."""
    for _ in range(count):
        await asyncio.wait_for(log.room(), 5)
        log.append(None, DATA)
        await settled(store)
    log.close(COMPLETED)


async def test_readers_of_a_shared_run_that_read_nothing_hold_nobody_up_and_miss_events(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await new(store, shared=True, window=5 * SIZE)
    with ExitStack() as stack:
        stalled = [stack.enter_context(log.read(-1)) for _ in range(5)]
        quick = asyncio.ensure_future(drained(stack.enter_context(log.read(-1))))
        await produced(store, log, 50)
        every = [frame(b"r", number, None, DATA) for number in range(50)]
        every.append(frame(b"r", 50, b"end", COMPLETED.encode()))
        assert await asyncio.wait_for(quick, 5) == b"".join(every)
        await settled(store)
        for reader in stalled:
            with pytest.raises(LostHistory) as lost:
                await asyncio.wait_for(anext(reader), 5)
            missed, first = lost.value.missed, lost.value.first
            assert 40 < missed == first < 50, "it continues with what the log still has"
            assert await read_all(log, first - 1) == b"".join(every[first:])


async def test_a_reader_of_a_shared_run_that_is_less_than_a_window_behind_misses_nothing(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await new(store, shared=True, window=10 * SIZE)
    read = b""
    with log.read(-1) as slow, log.read(-1) as quick:
        for _ in range(20):
            for _ in range(5):
                log.append(None, DATA)
            await settled(store)
            while quick.ready:
                await anext(quick)
            while slow.ready:
                read += await anext(slow)
        log.close(COMPLETED)
        read += await asyncio.wait_for(drained(slow), 5)
    assert read.count(b"id: ") == 101


async def test_a_shared_run_waits_while_every_reader_is_a_window_behind(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, shared=True, window=5 * SIZE)
    with log.read(-1) as one, log.read(-1):
        while not log.is_full():
            log.append(None, DATA)
        assert (log.first, 5 <= log.last <= 6) == (0, True)
        await settled(store)
        room = asyncio.ensure_future(log.room())
        await asyncio.sleep(0)
        assert not room.done()
        while one.ready:
            await anext(one)
        more = asyncio.ensure_future(anext(one))
        await asyncio.wait_for(room, 5)
        log.append(None, DATA)
        await asyncio.wait_for(more, 5)


async def test_the_only_reader_of_a_shared_run_misses_nothing_however_slow_it_is(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await new(store, shared=True, window=5 * SIZE)
    with log.read(-1) as slow:
        producing = asyncio.create_task(produced(store, log, 50))
        read: list[bytes] = []
        async with asyncio.timeout(30):
            while not read or b"event: end" not in read[-1]:
                # At each step, the producer goes as far as it may.
                await until(
                    lambda: log.is_full() or not log.producing, "the producer waits, or is done"
                )
                read.append(await anext(slow))
        await producing
    assert b"".join(read).count(b"id: ") == 51


async def test_closing_the_log_ends_the_producers_wait(make_log: MakeLog) -> None:
    log = await new(make_log(), window=SIZE)
    while not log.is_full():
        log.append(None, DATA)
    room = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    log.close(CANCELLED)
    await asyncio.wait_for(room, 5)


async def test_events_that_all_readers_have_read_are_dropped_beyond_the_window(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await new(store, window=5 * SIZE)
    with log.read(-1) as reader:
        for _ in range(50):
            log.append(None, DATA)
            await anext(reader)
    await settled(store)
    assert log.first > 40
    assert store.bytes <= 6 * SIZE
    with pytest.raises(LostHistory) as lost, log.read(9):
        pass
    assert (lost.value.missed, lost.value.first) == (log.first - 10, log.first)
    log.close(COMPLETED)
    assert (await read_all(log, log.first - 1)).startswith(b"id: r.%d\n" % log.first)


async def test_with_drops_oldest_a_run_without_readers_drops_its_oldest_events(
    make_log: MakeLog,
) -> None:
    store = make_log()
    log = await new(store, window=5 * SIZE, drops_oldest=True)
    for _ in range(50):
        log.append(None, DATA)
        await settled(store)
        assert not log.is_full()
    await settled(store)
    assert log.first > 40
    assert store.bytes <= 6 * SIZE


async def test_at_max_runs_what_nobody_watches_makes_room_in_order_then_new_runs_are_refused(
    make_log: MakeLog,
) -> None:
    """Finished ones, running ones of one client, and those with a key last."""
    store = make_log(max_runs=6)
    keyed = {name: info(name, key=f"key-{name}") for name in ("e", "f")}
    for name in ("f", "b", "c", "a", "d", "e"):
        log = await store.create(keyed.get(name) or info(name), LIMITS)
        log.open()
        if name in "ade":
            log.close(COMPLETED)
        await settled(store)
    with (await store.find("b")).read(-1):
        pass  # Now nobody has watched `c` for longer.
    order = ["a", "d", "c", "b", "e", "f"]
    with ExitStack() as stack:
        for number, next_one in enumerate(order):
            running = await store.find(next_one)
            stack.enter_context((await new(store, f"new-{number}")).read(-1))
            assert not running.producing
            for name in order:
                if name in order[: number + 1]:
                    with pytest.raises(UnknownRun):
                        await store.find(name)
                else:
                    assert await store.find(name)
        with pytest.raises(StoreFull):
            await new(store, "refused")
        assert len(store) == 6


async def test_a_run_that_makes_room_tells_its_producer(make_log: MakeLog) -> None:
    store = make_log(max_runs=1)
    log = await new(store, "a")
    told: list[bool] = []
    log.watch(lambda: told.append(log.producing))
    await new(store, "b")
    assert told
    assert told[-1] is False
    assert (len(store), store.bytes) == (1, 0)


@pytest.mark.parametrize("what", ["watched", "watched and finished", "opening", "shared"])
async def test_these_runs_make_no_room(make_log: MakeLog, what: str) -> None:
    store = make_log(max_runs=1)
    log = await opening(store, "a", shared=what == "shared")
    if what == "opening":
        with pytest.raises(StoreFull):
            await new(store, "b")
        return
    log.open()
    if what == "shared":
        with pytest.raises(StoreFull):
            await new(store, "b")
        return
    if "finished" in what:
        log.close(COMPLETED)
    await settled(store)
    with log.read(-1), pytest.raises(StoreFull):
        await new(store, "b")
    await new(store, "b")


async def test_runs_that_continue_without_readers_make_room_after_others(
    make_log: MakeLog,
) -> None:
    store = make_log(max_runs=2)
    await new(store, "continues", drops_oldest=True)
    await new(store, "other")
    await new(store, "next")
    assert await store.find("continues")
    with pytest.raises(UnknownRun):
        await store.find("other")


async def test_arguments_are_counted_while_the_run_is_running_and_not_kept_after_it(
    make_log: MakeLog,
) -> None:
    store = make_log(max_bytes=10 * SIZE)
    arguments = '{"text":"%s"}' % ("x" * 2 * SIZE)
    for name, end in (("closed", COMPLETED), ("cancelled", CANCELLED), ("refused", None)):
        run = info(name, arguments=arguments, argument_bytes=len(arguments))
        log = await store.create(run, LIMITS)
        assert store.bytes == 2 * len(arguments), "as JSON, and those of the source"
        if end is None:
            log.refuse(StreamError())
        elif end is COMPLETED:
            log.close(end)
        else:
            await log.cancel(CANCELLED)
        assert store.bytes < SIZE
        assert log.info.arguments is None
        await settled(store)
        await store.discard(name)
    await store.create(info("a", argument_bytes=10 * SIZE), LIMITS)
    with pytest.raises(StoreFull):
        await store.create(info("b"), LIMITS)


async def test_at_max_bytes_producers_wait_for_their_readers(make_log: MakeLog) -> None:
    store = make_log(max_bytes=10 * SIZE)
    idle = await new(store, "idle")
    while not idle.is_full():
        idle.append(None, DATA)
    assert store.bytes <= 11 * SIZE
    with idle.read(-1), pytest.raises(StoreFull):
        await new(store, "c")
    idle.close(COMPLETED)
    await settled(store)
    busy = await new(store, "busy")
    assert len(store) == 1, "the finished run has made room"
    with busy.read(-1) as reader:
        for _ in range(100):
            busy.append(None, DATA)
            await anext(reader)
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0)
            assert not busy.is_full()
            waiting.cancel()
    assert store.bytes <= 12 * SIZE


async def test_stop_ends_the_iteration_of_a_reader_whether_it_waits_or_not(
    make_log: MakeLog,
) -> None:
    log = await new(make_log())
    log.append(None, b"0")
    with log.read(-1) as waiting, log.read(-1) as busy:
        await anext(waiting)
        ended = asyncio.ensure_future(anext(waiting, None))
        await asyncio.sleep(0)
        waiting.stop()
        busy.stop()
        assert await asyncio.wait_for(ended, 5) is None
        assert await anext(busy, None) is None
    assert log.readers == 0


LIMITS = Limits(window=2**20, retain=300)


async def test_a_shared_run_is_the_only_one_with_its_arguments_while_it_is_running(
    make_log: MakeLog,
) -> None:
    store = make_log()

    async def create(run: str, arguments: str = "x") -> RunLog:
        return await store.create(info(run, shared=True, arguments_hash=arguments), LIMITS)

    log = await create("a")
    assert (await create("b")).info.run == "a"
    assert (await create("c", "other")).info.run == "c"
    log.close(COMPLETED)
    await settled(store)
    assert (await create("d")).info.run == "d"
    await store.discard("d")
    assert (await create("e")).info.run == "e"


@pytest.mark.parametrize("end", [None, COMPLETED, End("failed"), CANCELLED])
async def test_a_key_names_one_run_of_its_owner_source_and_route_while_that_is_held(
    make_log: MakeLog, end: End | None
) -> None:
    store = make_log()
    run = info("a", key="k", owner="ann", source="s", route="/r")
    log = await store.create(run, LIMITS)
    assert run.unique_key is not None
    if end is not None:
        log.close(end)
        await settled(store)
    found = await store.find_by_key(run.unique_key)
    assert found is not None
    assert found.info.run == "a"
    again = msgspec.structs.replace(run, run="b")
    assert (await store.create(again, LIMITS)).info.run == "a"
    with pytest.raises(UnknownRun):
        await store.find("b")
    for name, value in (("key", "K"), ("owner", None), ("source", "S"), ("route", None)):
        other = msgspec.structs.replace(again, run=name, **{name: value})
        assert other.unique_key is not None
        assert await store.find_by_key(other.unique_key) is None
        assert (await store.create(other, LIMITS)).info.run == name


@pytest.mark.parametrize("reason", [NO_READER, SHUTDOWN])
async def test_a_run_that_is_refused_discarded_expired_or_given_up_frees_its_key(
    make_log: MakeLog, reason: str
) -> None:
    store = make_log()

    async def create(run: str, retain: float = 300) -> RunLog:
        return await store.create(info(run, key="k"), Limits(window=2**20, retain=retain))

    (await create("refused")).refuse(StreamError("no"))
    await settled(store)
    async with asyncio.timeout(5):
        unread = await create("unread")
    unread.close(End.cancelled(reason))
    await settled(store)
    assert (await store.find("unread")).status == "cancelled", "it is retained"
    assert (await create("discarded")).info.run == "discarded"
    await store.discard("discarded")
    log = await create("expired", retain=0.05)
    assert log.info.run == "expired"
    log.close(COMPLETED)
    await settled(store)
    key = log.info.unique_key
    assert key is not None
    async with asyncio.timeout(5):
        while await store.find_by_key(key) is not None:
            await asyncio.sleep(0.01)
    assert (await create("last")).info.run == "last"


async def test_the_end_of_a_run_whose_key_another_run_has_leaves_the_key_to_that_one(
    make_log: MakeLog,
) -> None:
    store = make_log()
    first = await store.create(info("a", key="k"), LIMITS)
    first.close(End.cancelled(NO_READER))
    await settled(store)
    await store.create(info("b", key="k"), LIMITS)
    await store.discard("a")
    assert (await store.create(info("c", key="k"), LIMITS)).info.run == "b"


async def test_runs_with_a_key_make_room_last_and_are_found_when_there_is_none(
    make_log: MakeLog,
) -> None:
    store = make_log(max_runs=3)
    for run, key in (("a", "k"), ("b", None), ("c", None)):
        (await store.create(info(run, key=key), LIMITS)).close(COMPLETED)
        await settled(store)
    await opening(store, "d")
    await opening(store, "e")
    assert (await store.create(info("f", key="k"), LIMITS)).info.run == "a"
    await opening(store, "g")
    for run in ("a", "b", "c"):
        with pytest.raises(UnknownRun):
            await store.find(run)


async def listed(store: EventLog, **selection: Any) -> list[str]:
    return [log.info.run for log in await store.select(Selection(**selection))]


@pytest.mark.parametrize(("selection", "runs"), SELECTIONS)
async def test_runs_are_selected_newest_first_by_owner_key_source_and_status(
    make_log: MakeLog, selection: dict[str, Any], runs: list[str]
) -> None:
    store = make_log()
    for run in SELECTED_RUNS:
        log = await store.create(run, LIMITS)
        if run.run == "refused":
            log.refuse(StreamError())
        elif run.run == "b-x":
            log.close(COMPLETED)
    await store.discard("gone")
    await settled(store)
    assert await listed(store, **selection) == runs


@pytest.mark.parametrize("selection", [{}, {"owner": "ann"}, {"key_prefix": "k"}], ids=str)
async def test_a_selection_is_read_in_pages_even_if_the_last_run_of_a_page_is_forgotten(
    make_log: MakeLog, selection: dict[str, Any]
) -> None:
    """Several runs start at one moment, and not in the order of their ids."""
    store = make_log(max_runs=300)
    started = [datetime(2026, 1, 1, second=i // 10, tzinfo=UTC) for i in range(205)]
    infos = [
        info(f"r{i * 7 % 205}", owner="ann", key=f"k{i}", started=each)
        for i, each in enumerate(started)
    ]
    for run in infos:
        (await store.create(run, LIMITS)).open()
    await settled(store)
    newest_first = [run.run for run in sorted(infos, key=lambda run: run.place, reverse=True)]
    pages: list[list[str]] = []
    after: dict[str, Any] = {}
    while True:
        page = await store.select(Selection(**selection, **after, limit=100))
        pages.append([log.info.run for log in page])
        if len(page) < 100:
            break
        after = {"after": page[-1].info.place}
        await store.discard(page[-1].info.run)
    assert [len(page) for page in pages] == [100, 100, 5]
    assert [run for page in pages for run in page] == newest_first
    for limit in (99, 100, 202, 203, 204):
        assert len(await store.select(Selection(**selection, limit=limit))) == min(limit, 203)


async def test_a_run_that_has_expired_is_not_selected(make_log: MakeLog) -> None:
    store = make_log()
    await store.create(info("a", owner="ann", key="k"), LIMITS)
    run = info("b", owner="ann", key="k2")
    (await store.create(run, Limits(window=2**20, retain=0.05))).close(COMPLETED)
    await settled(store)
    async with asyncio.timeout(5):
        while await listed(store, owner="ann") != ["a"]:
            await asyncio.sleep(0.01)
    assert await listed(store) == await listed(store, key_prefix="k") == ["a"]


async def test_cancel_closes_the_log_once_and_calls_the_producers_watcher(
    make_log: MakeLog,
) -> None:
    log = await new(make_log())
    told = []
    log.watch(lambda: told.append(log.producing))
    log.append(None, b"0")
    assert log.producing
    assert [await log.cancel(CANCELLED) for _ in range(2)] == [True, False]
    assert (log.status, log.last, told) == ("cancelled", 1, [False])
    assert (await read_all(log, 0)) == frame(b"r", 1, b"end", CANCELLED.encode())
    with pytest.raises(LogClosed):
        log.append(None, b"1")


async def test_the_watcher_is_called_when_readers_attach_and_detach(make_log: MakeLog) -> None:
    log = await new(make_log())
    told: list[int] = []
    log.watch(lambda: told.append(log.readers))
    with log.read(-1), log.read(-1):
        pass
    assert told == [1, 2, 1, 0]


async def test_the_producer_is_the_worker_that_created_the_run(make_log: MakeLog) -> None:
    store = make_log()
    assert (await new(store)).producer == store.worker


@pytest.mark.parametrize("how", ["closed", "refused", "cancelled", "discarded"])
async def test_the_producer_learns_that_its_end_is_certain(make_log: MakeLog, how: str) -> None:
    store = make_log()
    log = await (opening(store) if how == "refused" else new(store))
    told: list[bool | None] = []
    log.watch(lambda: told.append(log.ended_here))
    assert log.ended_here is None
    if how == "closed":
        log.close(COMPLETED)
    elif how == "refused":
        log.refuse(StreamError("no", status=409))
    elif how == "cancelled":
        await log.cancel(CANCELLED)
    else:
        await store.discard("r")
    await until(lambda: log.ended_here, "the end is certain")
    assert told[-1] is True


async def test_a_log_can_be_opened_and_closed(make_log: MakeLog) -> None:
    store = make_log()
    await store.open()
    (await new(store)).close(COMPLETED)
    await store.aclose()


async def test_events_are_counted_for_ever_and_bytes_while_they_are_held(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store)
    log.append(None, DATA)
    log.append(None, DATA)
    assert store.events == 2
    assert store.bytes == len(frame(b"r", 0, None, DATA)) * 2
    await store.discard("r")
    assert (store.events, store.bytes) == (2, 0)


def topic(run: str = "t", arguments: str = "h") -> RunInfo:
    """What a caller knows of a topic. It proposes `run` for a new one."""
    return info(run, shared=True, topic=True, arguments_hash=arguments)


async def test_a_topic_is_made_once_by_whoever_reads_or_publishes_first(make_log: MakeLog) -> None:
    store = make_log()
    log = await store.topic(topic(), LIMITS)
    assert not log.opening
    assert (log.info.run, log.status, log.first, log.last) == ("t", "running", 0, 0)
    assert await store.publish(topic("u"), LIMITS, (None, b"1")) == EventId("t", 1)
    assert (await store.topic(topic("u"), LIMITS)).info.run == "t"
    assert await store.publish(topic("v", "other"), LIMITS, (b"x", b"1")) == EventId("v", 1)
    with pytest.raises(UnknownRun):
        await store.find("u")


async def test_the_readers_of_a_topic_get_what_is_published_and_its_end(make_log: MakeLog) -> None:
    store = make_log()
    log = await store.topic(topic(), LIMITS)
    with log.read(-1) as reader:
        for number in range(1, 4):
            await store.publish(topic(), LIMITS, (None, b"%d" % number))
        for _ in range(2):
            await store.end_topic(topic(), LIMITS, COMPLETED)
        with pytest.raises(LogClosed):
            await store.publish(topic(), LIMITS, (None, b"late"))
        async with asyncio.timeout(5):
            read = await drained(reader)
    events = [topic().start_frame, *(frame(b"t", n, None, b"%d" % n) for n in range(1, 4))]
    assert read == b"".join([*events, frame(b"t", 4, b"end", COMPLETED.encode())])
    assert (await store.topic(topic("u"), LIMITS)).status == "completed", "it keeps its key"


async def test_a_topic_drops_what_a_reader_has_not_had_and_tells_it(make_log: MakeLog) -> None:
    store = make_log()
    limits = Limits(window=5 * SIZE, retain=300)
    log = await store.topic(topic(), limits)
    with log.read(-1) as reader:
        async with asyncio.timeout(5):
            await anext(reader)
        for _ in range(20):
            await store.publish(topic(), limits, (None, DATA))
        with pytest.raises(LostHistory) as lost:
            await asyncio.wait_for(drained(reader), 5)
    assert lost.value.missed > 10
    await store.end_topic(topic(), limits, COMPLETED)
    held = await read_all(await store.find("t"), lost.value.first - 1)
    assert held.startswith(b"id: t.%d\n" % lost.value.first)


async def test_a_topic_is_forgotten_when_it_has_had_no_reader_and_no_event_for_a_while(
    make_log: MakeLog,
) -> None:
    store = make_log()
    limits = Limits(window=SIZE, retain=0.1)

    async def until_forgotten(run: str) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    await store.find(run)
                except UnknownRun:
                    break
                await asyncio.sleep(0.01)

    with (await store.topic(topic(), limits)).read(-1):
        await settled(store)
        await store.publish(topic("u"), limits, (None, b"1"))
        await store.publish(topic("idle", "idle"), limits, (None, b"1"))
        await until_forgotten("idle")
        assert (await store.find("t")).last == 1
    await settled(store)
    await until_forgotten("t")
    assert await store.publish(topic("u"), limits, (None, b"1")) == EventId("u", 1)
