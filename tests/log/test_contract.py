"""log.py: the contract of an event log, for every implementation, and what is MemoryLog's own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import EventLog, MemoryLog
from streams.errors import LogClosed, LostHistory, RunExists, StoreFull, UnknownRun
from streams.event import frame
from streams.log import Reader, RunInfo, RunLog
from streams.log.memory_run import CHUNK
from streams.log.redis import RedisLog
from tests.support.list_log import ListLog
from tests.support.servers import until

MakeLog = Callable[..., EventLog]

SIZE = 1000
DATA = b"x" * 900  # a frame of it has a little less than SIZE bytes


def info(run: str = "r", **members: Any) -> RunInfo:
    return RunInfo(**{"run": run, "source": "s", "started": datetime.now(UTC), **members})


@pytest.fixture(params=[MemoryLog, ListLog, RedisLog])
async def make_log(request: pytest.FixtureRequest) -> AsyncIterator[MakeLog]:
    made: list[EventLog] = []

    def make(**options: Any) -> EventLog:
        if request.param is RedisLog:
            options["url"] = request.getfixturevalue("redis_url")
        made.append(request.param(**options))
        return made[-1]

    yield make
    for log in made:
        await log.aclose()


async def new(store: EventLog, run: str = "r", **options: Any) -> RunLog:
    return await store.create(info(run), **{"window": 2**20, "retain": 300, **options})


async def settled(store: EventLog) -> None:
    """Waits until readers see what has been appended, where that takes a while."""
    if isinstance(store, RedisLog):
        await store.written()


async def read_all(log: RunLog, after: int = -1) -> bytes:
    with anyio.fail_after(5), log.read(after) as reader:
        return await drained(reader)


async def test_append_numbers_from_zero_and_reading_is_exclusive(make_log: MakeLog) -> None:
    log = await new(make_log())
    for data in (b"0", b"1", b"2"):
        log.append(None, data)
    log.close("completed", b"{}")
    assert (log.first, log.last, log.status) == (0, 3, "completed")
    frames = [frame(b"r", n, None, b"%d" % n) for n in range(3)] + [frame(b"r", 3, b"end", b"{}")]
    for after in range(-1, 4):
        assert await read_all(log, after) == b"".join(frames[after + 1 :])


@pytest.mark.parametrize("store", [MemoryLog(), ListLog()])
async def test_append_says_whether_it_woke_a_reader(store: EventLog) -> None:
    log = await new(store)
    with log.read(-1) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert log.append(None, b"1"), "a reader waits"
        assert not log.append(None, b"2"), "it is awake already"
        await asyncio.wait_for(waiting, 5)


async def test_a_reader_goes_from_replay_to_live_without_gap_or_repeat(make_log: MakeLog) -> None:
    log = await new(make_log())
    log.append(None, b"0")
    got = []

    async def read() -> None:
        with log.read(-1) as reader:
            async for frames in reader:
                got.append(frames)

    task = asyncio.create_task(read())
    await until(lambda: got)
    log.append(None, b"1")
    log.append(None, b"2")
    await until(
        lambda: len(b"".join(got)) == sum(len(frame(b"r", n, None, b"0")) for n in range(3))
    )
    log.close("completed", b"{}")
    await asyncio.wait_for(task, 5)
    assert b"".join(got) == await read_all(log)


async def test_closed_is_a_state_and_nothing_can_be_added(make_log: MakeLog) -> None:
    log = await new(make_log())
    log.close("failed", b"{}")
    with pytest.raises(LogClosed):
        log.append(None, b"1")
    with pytest.raises(LogClosed):
        log.close("completed", b"{}")
    assert (log.status, log.last) == ("failed", 0)


async def test_a_finished_run_is_kept_for_retain_seconds(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, retain=0.05)
    log.close("completed", b"{}")
    await settled(store)
    assert await store.find("r") is log
    await until(lambda: not len(store))
    with pytest.raises(UnknownRun):
        await store.find("r")
    assert store.bytes == 0


async def test_an_unknown_run_and_a_known_one_twice(make_log: MakeLog) -> None:
    store = make_log()
    with pytest.raises(UnknownRun):
        await store.find("r")
    await new(store)
    with pytest.raises(RunExists, match="r"):
        await new(store)


async def test_discarding_ends_readers_and_frees_the_name(make_log: MakeLog) -> None:
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


async def test_a_run_may_begin_where_an_earlier_process_had_got_to(make_log: MakeLog) -> None:
    log = await new(make_log(), after=41)
    assert (log.first, log.last, log.restarted) == (42, 41, True)
    log.append(None, b"42")
    log.append(None, b"43")
    log.close("completed", b"{}")
    assert (await read_all(log, 41)).startswith(frame(b"r", 42, None, b"42"))
    assert (await read_all(log, 42)).startswith(frame(b"r", 43, None, b"43"))
    assert await read_all(log, 50) == b"", "who is ahead of it waits for it, here in vain"
    with pytest.raises(LostHistory):
        await read_all(log, 30)


async def test_the_producer_is_held_a_window_ahead_of_the_slowest_reader(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, window=5 * SIZE)
    with log.read(-1) as slow, log.read(-1) as quick:
        while not log.full:
            log.append(None, DATA)
        assert 5 <= log.last <= 6
        await settled(store)
        room = asyncio.ensure_future(log.room())
        while quick.ready:
            await anext(quick)
        ahead = asyncio.ensure_future(drained(quick))  # asks for more: it has had what it got
        await asyncio.sleep(0)
        assert not room.done(), "the slow one has had nothing"
        assert (await anext(slow)).startswith(b"id: r.0\n"), "and nothing of it is dropped"
        rest = asyncio.ensure_future(drained(slow))
        await asyncio.wait_for(room, 5)
        log.close("completed", b"{}")
        end = await read_all(log, log.last - 1)
        assert (await asyncio.wait_for(rest, 5)).endswith(end)
        assert await asyncio.wait_for(ahead, 5) == end


async def drained(reader: Reader) -> bytes:
    return b"".join([frames async for frames in reader])


async def test_a_reader_that_leaves_holds_nobody_up(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, window=3 * SIZE)
    with log.read(-1) as quick:
        with log.read(-1):
            while not log.full:
                log.append(None, DATA)
            await settled(store)
            while quick.ready:
                await anext(quick)
            waiting = asyncio.ensure_future(anext(quick))  # what it got last, it has had now
            room = asyncio.ensure_future(log.room())
            await asyncio.sleep(0)
            assert not room.done()
        await asyncio.wait_for(room, 5)
        log.append(None, DATA)
        await asyncio.wait_for(waiting, 5)


async def test_with_no_reader_the_producer_waits_when_the_window_is_full(make_log: MakeLog) -> None:
    log = await new(make_log(), window=3 * SIZE)
    while not log.full:
        log.append(None, DATA)
    room = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    assert not room.done()
    assert log.first == 0
    with log.read(log.last):
        await asyncio.wait_for(room, 5)


async def test_a_waiting_producer_goes_on_when_its_log_is_closed(make_log: MakeLog) -> None:
    log = await new(make_log(), window=SIZE)
    while not log.full:
        log.append(None, DATA)
    room = asyncio.ensure_future(log.room())
    await asyncio.sleep(0)
    log.close("cancelled", b"{}")
    await asyncio.wait_for(room, 5)


async def test_past_the_window_what_all_have_had_is_dropped_and_missed(make_log: MakeLog) -> None:
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
    log.close("completed", b"{}")
    assert (await read_all(log, log.first - 1)).startswith(b"id: r.%d\n" % log.first)


async def test_a_run_that_lives_without_readers_drops_its_oldest(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store, window=5 * SIZE, drops_oldest=True)
    for _ in range(50):
        log.append(None, DATA)
        await settled(store)
        assert not log.full
    await settled(store)
    assert log.first > 40
    assert store.bytes <= 6 * SIZE


async def test_a_full_store_forgets_finished_runs_first_and_then_refuses(make_log: MakeLog) -> None:
    store = make_log(max_runs=2)
    (await new(store, "a")).close("completed", b"{}")
    await settled(store)
    await new(store, "b")
    await new(store, "c")
    with pytest.raises(UnknownRun):
        await store.find("a")
    with pytest.raises(StoreFull):
        await new(store, "d")
    assert len(store) == 2


async def test_a_finished_run_that_is_being_read_is_not_forgotten(make_log: MakeLog) -> None:
    store = make_log(max_runs=1)
    log = await new(store, "a")
    log.close("completed", b"{}")
    await settled(store)
    with log.read(-1), pytest.raises(StoreFull):
        await new(store, "b")
    await new(store, "b")


async def test_at_the_limit_of_bytes_producers_wait_for_their_readers(make_log: MakeLog) -> None:
    store = make_log(max_bytes=10 * SIZE)
    idle = await new(store, "idle")
    while not idle.full:
        idle.append(None, DATA)
    assert store.bytes <= 11 * SIZE
    with pytest.raises(StoreFull):
        await new(store, "c")
    idle.close("completed", b"{}")
    await settled(store)
    busy = await new(store, "busy")
    assert len(store) == 1, "the finished one made room"
    with busy.read(-1) as reader:
        for _ in range(100):
            busy.append(None, DATA)
            await anext(reader)
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0)
            assert not busy.full
            waiting.cancel()
    assert store.bytes <= 12 * SIZE


async def test_stop_ends_a_reader_that_waits_and_one_that_does_not(make_log: MakeLog) -> None:
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


async def test_of_runs_with_the_same_key_one_is_running(make_log: MakeLog) -> None:
    store = make_log()
    options: dict[str, Any] = {"window": 2**20, "retain": 300}
    log = await store.create(info("a", key="k"), **options)
    assert (await store.create(info("b", key="k"), **options)).info.run == "a"
    assert (await store.create(info("c", key="other"), **options)).info.run == "c"
    log.close("completed", b"{}")
    await settled(store)
    assert (await store.create(info("d", key="k"), **options)).info.run == "d"
    await store.discard("d")
    assert (await store.create(info("e", key="k"), **options)).info.run == "e"


async def test_cancelling_closes_the_log_once_and_tells_the_producer(make_log: MakeLog) -> None:
    log = await new(make_log())
    told = []
    log.watch(lambda: told.append(log.producing))
    log.append(None, b"0")
    assert log.producing
    for _ in range(2):
        await log.cancel(b"{}")
    assert (log.status, log.last, told) == ("cancelled", 1, [False])
    assert (await read_all(log, 0)) == frame(b"r", 1, b"end", b"{}")
    with pytest.raises(LogClosed):
        log.append(None, b"1")


async def test_who_watches_is_told_when_readers_come_and_go(make_log: MakeLog) -> None:
    log = await new(make_log())
    told: list[int] = []
    log.watch(lambda: told.append(log.readers))
    with log.read(-1), log.read(-1):
        pass
    assert told == [1, 2, 1, 0]


async def test_the_producer_is_named(make_log: MakeLog) -> None:
    store = make_log()
    assert (await new(store)).producer == store.worker


async def test_opening_and_closing_a_log_end_in_nothing_left_over(make_log: MakeLog) -> None:
    store = make_log()
    await store.open()
    (await new(store)).close("completed", b"{}")
    await store.aclose()


async def test_events_are_counted_for_ever_and_bytes_while_held(make_log: MakeLog) -> None:
    store = make_log()
    log = await new(store)
    log.append(None, DATA)
    log.append(None, DATA)
    assert store.events == 2
    assert store.bytes == len(frame(b"r", 0, None, DATA)) * 2
    await store.discard("r")
    assert (store.events, store.bytes) == (2, 0)


async def test_a_memory_log_that_is_full_lets_a_producer_go_on_when_another_run_goes() -> None:
    store = MemoryLog(max_bytes=10 * SIZE)
    first, second = await new(store, "first"), await new(store, "second")
    first.append(None, b"x" * 9_500)
    second.append(None, DATA)
    assert second.full
    room = asyncio.ensure_future(second.room())
    await asyncio.sleep(0)
    assert not room.done()
    await store.discard("first")
    await asyncio.wait_for(room, 5)


async def test_a_replay_comes_in_pieces_of_bounded_size_that_end_with_a_frame() -> None:
    log = await new(MemoryLog(), window=2**30)
    for _ in range(1000):
        log.append(None, DATA)
    log.append(None, b"x" * (2 * CHUNK))
    log.append(None, DATA)
    log.close("completed", b"{}")
    with log.read(-1) as one, log.read(-1) as other:
        pieces = [piece async for piece in one]
        assert [piece async for piece in other] == pieces
    assert all(len(piece) <= CHUNK for piece in pieces if b"id: r.1000\n" not in piece)
    assert all(piece.endswith(b"\n\n") for piece in pieces)
    assert len(pieces) < 20


@given(
    st.lists(st.binary(max_size=50), max_size=40),
    st.lists(st.integers(0, 45)),
    st.integers(1, 2000),
)
async def test_a_memory_log_gives_what_a_list_gives_whatever_was_trimmed(
    events: list[bytes], reads: list[int], window: int
) -> None:
    store = MemoryLog()
    log = await new(store, window=window)
    frames = []
    with log.read(-1) as reader:
        for number, data in enumerate(events):
            data = data.replace(b"\n", b"").replace(b"\r", b"")
            frames.append(frame(b"r", number, None, data))
            log.append(None, data)
            if number in reads:
                while reader.ready:
                    await anext(reader)
        held = b"".join(frames[log.first :])
        assert store.bytes == len(held)
    log.close("completed", b"{}")
    for after in range(log.first - 1, len(events)):
        expected = b"".join(frames[after + 1 :]) + frame(b"r", len(events), b"end", b"{}")
        assert await read_all(log, after) == expected
    await store.discard("r")
