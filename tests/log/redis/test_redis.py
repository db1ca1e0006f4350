"""redis_log.py: what only a log of many workers does, with the workers in this process.

A worker "dies" here when its tasks are cancelled, and wakes up when it is opened again: what
others see is the same as with a process that is killed, or stopped and continued.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import trustme

from streams import Policy, Streams, source
from streams.errors import LogClosed, LostHistory, StoreDown, UnknownRun
from streams.event import EventId, frame
from streams.log import RunLog
from streams.log.redis import MOST_RUNS, RedisLog
from streams.log.redis.connection import RedisLink
from streams.log.redis.scripts import LOOK
from streams.run import Runs
from streams.sources import counter
from tests.log.test_contract import DATA, SIZE, drained, info, new, read_all
from tests.support.servers import until
from tests.support.valkey import Valkey

Make = Callable[..., RedisLog]


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[Make]:
    made: list[RedisLog] = []

    def make(**options: Any) -> RedisLog:
        made.append(RedisLog(f"{redis_url}&lease=0.3", **options))
        return made[-1]

    yield make
    for log in made:
        await log.aclose()


async def die(log: RedisLog) -> None:
    for task in log._tasks:
        task.cancel()
    await asyncio.wait(log._tasks)
    log._tasks = []


async def nobody(log: RunLog) -> None:
    """Adopts, and does nothing."""


async def taken_from(dying: RedisLog, survivor: RedisLog, run: str = "r") -> RunLog:
    """The run, when the survivor has it."""
    taken: asyncio.Future[RunLog] = asyncio.get_running_loop().create_future()

    async def adopt(log: RunLog) -> None:
        taken.set_result(log)

    survivor.adopt = adopt
    await survivor.open()
    await die(dying)
    return await asyncio.wait_for(taken, 5)


async def test_one_survivor_takes_over_behind_the_last_event(worker: Make) -> None:
    one, other, third = worker(), worker(), worker()
    log = await new(one)
    log.append(None, b"0")
    log.append(None, b"1")
    await one.written()
    adopted = await taken_from(one, other)
    assert adopted.producing
    assert (adopted.last, adopted.producer) == (1, other.worker)
    adopted.append(None, b"2")
    adopted.close("completed", b"{}")
    found = await third.find("r")
    assert found.producer == other.worker
    expected = [frame(b"r", n, None, b"%d" % n) for n in range(3)] + [frame(b"r", 3, b"end", b"{}")]
    assert await read_all(found) == b"".join(expected)


async def test_who_was_superseded_is_refused_told_and_reads_on(worker: Make) -> None:
    one, other = worker(), worker()
    log = await new(one)
    told: list[bool] = []
    log.watch(lambda: told.append(log.producing))
    log.append(None, b"0")
    await one.written()
    with log.read(-1) as reader:
        reading = asyncio.ensure_future(drained(reader))
        adopted = await taken_from(one, other)
        adopted.append(None, b"1")
        log.append(None, b"void: it has not heard of it yet")
        await one.open()
        await until(lambda: told and not told[-1])
        with pytest.raises(LogClosed):
            log.append(None, b"2")
        adopted.close("completed", b"{}")
        got = await asyncio.wait_for(reading, 5)
    assert got == await read_all(await other.find("r"))
    assert b"void" not in got
    assert got.count(b"id: ") == 3


async def test_a_worker_takes_back_what_was_taken_from_it(worker: Make) -> None:
    one, other = worker(), worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    adopted = await taken_from(one, other)
    adopted.append(None, b"1")
    await other.written()
    await one.open()
    await until(lambda: not log.producing)
    again = await taken_from(other, one)
    assert again is log
    assert again.producing
    again.append(None, b"2")
    again.close("completed", b"{}")
    assert (await read_all(again)).count(b"id: ") == 4


async def test_runs_goes_on_with_what_it_can_and_ends_the_rest(worker: Make) -> None:
    @source
    async def mortal() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    @source
    async def fragile(*, after: int = 0) -> Any:
        if after:
            raise ValueError("no way back")
        return mortal()

    one, other = worker(), worker()
    sources = {s.name: (s, Policy()) for s in (counter, mortal, fragile)}
    here, there = Runs(one, sources), Runs(other, sources)
    logs = []
    for name, arguments in (
        ("counter", {"count": 3, "interval": 0.5}),
        ("mortal", {}),
        ("fragile", {}),
    ):
        s, policy = sources[name]

        async def opener(after: int, s: Any = s, arguments: Any = arguments) -> Any:
            return await s.open(arguments, None, after)

        logs.append(await here.start(s, policy, opener, None, arguments))
    await one.written()
    options: Any = {"window": 2**20, "retain": 300}
    unbegun = await one.create(info("A", source="counter", arguments="{}"), **options)
    await other.open()
    await die(one)
    ends = []
    for log in (*logs, unbegun):
        with anyio.fail_after(10):
            while (found := await other.find(log.info.run)).status == "running":
                await asyncio.sleep(0.02)
        await other.written()
        ends.append((found.status, await read_all(found)))
    assert [status for status, _ in ends] == ["completed", "failed", "failed", "completed"]
    assert ends[0][1].count(b'"number":') == 3
    assert b"ProducerLost" in ends[1][1]
    assert b"ValueError" in ends[2][1]
    assert b"no way back" not in ends[2][1]
    assert ends[3][1].count(b"event: start") == 1
    assert there.restarts == 2
    for run in here._producing.values():
        run.hand_over()


async def test_two_that_restart_a_run_at_once_share_it(worker: Make) -> None:
    one, other = worker(), worker()
    sources = {"counter": (counter, Policy())}
    place = EventId("A" * 22, 2)

    async def resumed(runs: Runs) -> Any:
        async def opener(after: int) -> Any:
            return await counter.open({"count": 5, "interval": 0.01}, None, after)

        return await runs.resume(place, counter, Policy(), opener, None, {})

    here, there = Runs(one, sources), Runs(other, sources)
    first, second = await asyncio.gather(resumed(here), resumed(there))
    assert {first.log.producer, second.log.producer} < {one.worker, other.worker}
    assert here.restarts + there.restarts == 1
    for place_ in (first, second):
        assert (await read_all(place_.log, place_.after)).count(b'"number":') == 3


async def test_the_places_of_a_worker_that_died_hold_nobody_up(worker: Make) -> None:
    one, other = worker(), worker()
    one.adopt = nobody
    log = await new(one, window=5 * SIZE)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")
    with found.read(-1):
        await until(lambda: log.readers == 1)
        with log.read(-1) as reader:
            reading = asyncio.ensure_future(drained(reader))
            while not log.full:
                log.append(None, DATA)
            await one.written()
            await until(lambda: log.full and log.first == 0)
            await die(other)
            await asyncio.wait_for(log.room(), 5)
            assert log.readers == 1
            log.close("completed", b"{}")
            await asyncio.wait_for(reading, 5)


async def test_a_slow_follower_takes_no_more_than_its_window_from_redis(worker: Make) -> None:
    one, other = worker(), worker()
    log = await new(one, window=5 * SIZE)
    found = await other.find("r")

    async def produce() -> None:
        for _ in range(60):
            await log.room()
            log.append(None, DATA)
        log.close("completed", b"{}")

    with found.read(-1) as slow:
        await until(lambda: log.readers == 1)
        producing = asyncio.create_task(produce())
        frames = b""
        while b"event: end" not in frames:
            await until(lambda: log.full or not log.producing)
            frames += await asyncio.wait_for(anext(slow), 5)
            assert other.bytes <= 9 * SIZE
        await producing
    assert frames.count(b"id: ") == 61


async def test_what_was_trimmed_is_a_loss_that_only_a_look_shows(worker: Make) -> None:
    one, other = worker(), worker()
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


async def test_a_follower_that_was_not_looking_loses_what_was_trimmed_meanwhile(
    worker: Make,
) -> None:
    one, other = worker(), worker()
    one.adopt = nobody
    log = await new(one, window=5 * SIZE, drops_oldest=True)
    log.append(None, DATA)
    await one.written()
    found = await other.find("r")
    with found.read(0) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await until(lambda: log.readers == 1)
        await die(other)
        await until(lambda: log.readers == 0)
        for _ in range(50):
            log.append(None, DATA)
            await one.written()
        await other.open()
        with pytest.raises(LostHistory):
            await asyncio.wait_for(waiting, 5)
    assert found.readers == 0


async def test_a_discarded_run_ends_its_readers_everywhere(worker: Make) -> None:
    one, other, third = worker(), worker(), worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    found = await other.find("r")
    with found.read(0) as reader:
        waiting = asyncio.ensure_future(anext(reader, None))
        await until(lambda: log.readers == 1)
        await third.discard("r")
        assert await asyncio.wait_for(waiting, 5) is None
    await until(lambda: not log.producing)
    with pytest.raises(UnknownRun):
        await other.find("r")


async def test_a_run_that_was_gone_and_began_again_is_read_where_a_reader_of_the_old_one_is(
    worker: Make,
) -> None:
    one, other = worker(), worker()
    (await new(one)).append(None, b"0")
    await one.written()
    found = await other.find("r")
    with found.read(0) as reader:
        waiting = asyncio.ensure_future(anext(reader, None))
        await asyncio.sleep(0)
        await one.discard("r")
        assert await asyncio.wait_for(waiting, 5) is None
        log = await new(one, after=0)
        anew = await other.find("r")
        assert anew.status == "running"
        reading = anew.read(0)
        waiting = asyncio.ensure_future(anext(reading.__enter__()))
        await until(lambda: log.readers == 1)
    log.append(None, b"1")
    assert await asyncio.wait_for(waiting, 5) == frame(b"r", 1, None, b"1")
    reading.__exit__(None, None, None)


async def test_more_runs_than_one_round_trip_takes_are_all_written(worker: Make) -> None:
    one, other = worker(), worker()
    logs = [await new(one, f"run{number}") for number in range(MOST_RUNS + 8)]
    await one.written()
    for log in logs:
        log.append(None, b"0")
    await asyncio.wait_for(one.written(), 5)
    for log in logs:
        assert (await other.find(log.info.run)).last == log.last


async def test_late_news_that_a_run_is_gone_does_not_end_the_one_that_began_since(
    worker: Make,
) -> None:
    one, other = worker(), worker()
    log = await new(one)
    one._told("gone", "r")
    log.append(None, b"0")
    log.close("completed", b"{}")
    await one.written()
    assert (await other.find("r")).status == "completed"
    assert await read_all(await other.find("r")) == await read_all(log)


async def test_a_discard_that_is_not_answered_is_tried_again(
    worker: Make,
    shared_valkey: Valkey,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = worker()
    await new(one)

    async def unanswered(self: RedisLink, *arguments: Any) -> Any:
        monkeypatch.undo()
        raise StoreDown("no answer")

    monkeypatch.setattr(RedisLink, "call", unanswered)
    await one.discard("r")
    prefix = redis_url.partition("prefix=")[2]
    await until(lambda: not shared_valkey.client.exists(f"{prefix}:run:r"))


def test_a_password_that_is_not_encoded_is_not_shown() -> None:
    with pytest.raises(ValueError, match="%-encoded") as refused:
        RedisLog("redis://:hush#hush@127.0.0.1:6379")
    assert "hush" not in str(refused.value)


async def test_a_run_that_expires_under_a_reader_ends_it(
    worker: Make, shared_valkey: Valkey, redis_url: str
) -> None:
    one, other = worker(), worker()
    log = await new(one)
    log.append(None, b"0")
    log.close("completed", b"{}")
    await one.written()
    found = await other.find("r")
    shared_valkey.client.delete(f"{redis_url.partition('prefix=')[2]}:log:r")
    assert await read_all(found) == b""
    shared_valkey.client.delete(f"{redis_url.partition('prefix=')[2]}:run:r")
    with pytest.raises(UnknownRun):
        await one.find("r")


async def test_a_reader_of_a_run_that_vanished_at_once_ends(worker: Make) -> None:
    one, other = worker(), worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    found = await other.find("r")
    await one.discard("r")
    assert await read_all(found, 0) == b""
    await found.cancel(b"{}")


async def test_a_producer_whose_run_is_not_in_redis_any_more_stops(
    worker: Make, shared_valkey: Valkey, redis_url: str
) -> None:
    log = await new(worker())
    prefix = redis_url.partition("prefix=")[2]
    shared_valkey.client.delete(f"{prefix}:run:r")
    log.append(None, b"0")
    await until(lambda: not log.producing)
    await log.room()


async def test_events_that_are_lost_there_and_here_break_the_run(
    worker: Make, shared_valkey: Valkey, redis_url: str
) -> None:
    one = worker()
    log = await new(one, window=3 * SIZE, drops_oldest=True)
    for _ in range(20):
        log.append(None, DATA)
        await one.written()
    shared_valkey.client.hset(f"{redis_url.partition('prefix=')[2]}:run:r", "last", "1")
    log.append(None, DATA)
    await until(lambda: not log.producing)


async def test_a_full_worker_forgets_in_redis_too(worker: Make) -> None:
    one, other = worker(max_runs=1), worker()
    (await new(one, "a")).close("completed", b"{}")
    await one.written()
    await new(one, "b")
    with pytest.raises(UnknownRun):
        await other.find("a")


async def test_unfinished_runs_do_not_expire_while_they_have_a_worker(
    worker: Make, shared_valkey: Valkey, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.TICKS_PER_STAY", 1)
    await new(worker())
    key = f"{redis_url.partition('prefix=')[2]}:run:r"
    shared_valkey.client.pexpire(key, 5000)
    await until(lambda: shared_valkey.client.ttl(key) > 80_000)


async def test_what_should_not_happen_is_logged_and_survived(
    worker: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: RedisLog, run: Any) -> Any:
        monkeypatch.undo()
        raise ZeroDivisionError

    one = worker()
    log = await new(one)
    monkeypatch.setattr(RedisLog, "_append", broken)
    log.append(None, b"0")
    await until(lambda: "should not happen" in caplog.text)
    log.append(None, b"1")
    log.close("completed", b"{}")
    assert (await read_all(log)).count(b"id: ") == 3


async def test_what_redis_refuses_for_one_run_harms_no_other(
    worker: Make, shared_valkey: Valkey, redis_url: str
) -> None:
    one, other = worker(), worker()
    key = f"{redis_url.partition('prefix=')[2]}:log:a"
    shared_valkey.client.set(key, "no stream")
    bad, good = await new(one, "a"), await new(one, "b")
    bad.append(None, b"0")
    good.append(None, b"0")
    with anyio.fail_after(5):
        while (await other.find("b")).last < 0:
            await asyncio.sleep(0.01)
    shared_valkey.client.delete(key)
    await asyncio.wait_for(one.written(), 5)
    assert (await other.find("a")).last == 0


async def test_a_run_whose_creation_was_not_answered_is_not_left_behind(
    worker: Make, shared_valkey: Valkey, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker()
    await one.open()
    call = RedisLink.call

    async def unanswered(self: RedisLink, *arguments: Any) -> Any:
        await call(self, *arguments)
        monkeypatch.undo()
        raise StoreDown("no answer")

    monkeypatch.setattr(RedisLink, "call", unanswered)
    with pytest.raises(StoreDown):
        await new(one)
    prefix = redis_url.partition("prefix=")[2]
    await until(lambda: not shared_valkey.client.exists(f"{prefix}:run:r"))


async def test_whatever_is_cancelled_at_any_moment_ends_and_costs_no_connection(
    redis_url: str,
) -> None:
    link = RedisLink(redis_url, prefix="")
    stream = f"{link.prefix}:log:r"
    for turns in range(40):
        for request in (link.news({stream: "0-0"}), link.call(LOOK, "worker", "r")):
            task = asyncio.ensure_future(request)
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            await asyncio.wait([task], timeout=5)
            assert task.cancelled() == cancelled
            assert not link._pool._in_use_connections
    calls = [link.call(LOOK, "worker", "r") for _ in range(50)]
    await asyncio.wait_for(asyncio.gather(*calls), 5)
    await link.aclose()


async def test_an_answer_from_before_a_run_began_here_does_not_end_it(
    worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers come on several connections, so they may be read in another order than given."""
    one, other = worker(), worker()
    log = await new(one)
    log.append(None, b"0")
    await one.written()
    await other.find("r")
    call = RedisLink.call
    early = [await call(other._link, LOOK, other.worker, run) for run in ("r", "unknown")]
    adopted = await taken_from(one, other)
    restarted = await new(other, "unknown")

    async def answered_early(self: RedisLink, *_: Any) -> Any:
        return early.pop(0)

    monkeypatch.setattr(RedisLink, "call", answered_early)
    assert await other.find("r") is adopted
    with pytest.raises(UnknownRun):
        await other.find("unknown")
    monkeypatch.undo()
    for run in (adopted, restarted):
        run.append(None, b"1")
        await other.written()
        assert run.producing
    assert (await one.find("r")).producer == other.worker


def test_a_redis_that_is_too_old_is_refused(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis.Redis, "info", lambda *_: {"redis_version": "6.0.16"})
    with pytest.raises(StoreDown, match=r"6\.0\.16"):
        Streams(log=redis_url)


async def test_a_socket_a_password_and_a_prefix_are_parts_of_the_url(
    shared_valkey: Valkey,
) -> None:
    shared_valkey.client.config_set("requirepass", "secret")
    address = shared_valkey.url.removeprefix("redis://")
    path = f"{shared_valkey.directory}/socket"
    try:
        with pytest.raises(StoreDown, match="at redis://127") as refused:
            Streams(log=f"redis://:wrong@{address}")
        assert "wrong" not in str(refused.value), "no password in a log"
        for url in (f"redis://:secret@{address}/0", f"redis+unix://:secret@{path}"):
            log = RedisLog(f"{url}?prefix=mine")
            log.check()
            (await new(log)).append(None, b"0")
            await log.written()
            await log.discard("r")
            await log.aclose()
    finally:
        shared_valkey.client.config_set("requirepass", "")


async def test_a_connection_may_be_encrypted_and_is_not_made_to_a_stranger(
    shared_valkey: Valkey, tmp_path: Path
) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with anyio.create_task_group() as group:
            back, forth = await asyncio.open_connection("127.0.0.1", shared_valkey.port)

            async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with suppress(ConnectionError):
                    while data := await reader.read(65536):
                        writer.write(data)
                writer.close()

            group.start_soon(copy, reader, forth)
            group.start_soon(copy, back, writer)

    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = await asyncio.start_server(relay, "localhost", 0, ssl=context)
    url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}?prefix=tls"
    async with server:
        log = RedisLog(f"{url}&ssl_ca_certs={tmp_path}/ca.pem")
        await asyncio.to_thread(log.check)
        (await new(log)).close("completed", b"{}")
        await log.written()
        assert await read_all(await log.find("r")) == frame(b"r", 0, b"end", b"{}")
        await log.discard("r")
        await log.aclose()
        with pytest.raises(StoreDown, match="certificate verify failed"):
            await asyncio.to_thread(RedisLog(url).check)
