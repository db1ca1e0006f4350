"""RedisLog on the side of the producer: writing, notifications, expiry and errors.

All workers are in this process.
"""

import asyncio
from typing import Any

import pytest

from streams.errors import StoreDown, UnknownRun
from streams.event import COMPLETED
from streams.log.redis import APPEND_RUNS, RedisLog
from streams.log.redis.connection import RedisLink
from tests.log.redis.conftest import NewWorker
from tests.log.redis.workers import until_async
from tests.support.event_logs import DATA, SIZE, new, read_all
from tests.support.servers import until
from tests.support.valkey import Valkey


async def test_more_runs_than_one_round_trip_takes_are_all_written(new_worker: NewWorker) -> None:
    one, other = new_worker(), new_worker()
    logs = [await new(one, f"run{number}") for number in range(APPEND_RUNS + 8)]
    await one.written()
    for log in logs:
        log.append(None, b"0")
    await asyncio.wait_for(one.written(), 5)
    for log in logs:
        assert (await other.find(log.info.run)).last == log.last


async def test_an_error_of_redis_for_one_run_does_not_affect_another_run(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str
) -> None:
    one, other = new_worker(), new_worker()
    key = f"{prefix}:log:a"
    shared_valkey.client.set(key, "no stream")
    bad, good = await new(one, "a"), await new(one, "b")
    bad.append(None, b"0")
    good.append(None, b"0")

    async def has_the_good_event() -> bool:
        return (await other.find("b")).last == 0

    await until_async(has_the_good_event, "Redis has the event of the good run")
    shared_valkey.client.delete(key)
    await asyncio.wait_for(one.written(), 5)
    assert (await other.find("a")).last == 0


async def test_an_unexpected_error_is_logged_and_writing_continues(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: RedisLog, run: Any) -> Any:
        monkeypatch.undo()
        raise ZeroDivisionError

    one = new_worker()
    log = await new(one)
    monkeypatch.setattr(RedisLog, "_append_call", broken)
    log.append(None, b"0")
    await until(lambda: "unexpected error" in caplog.text, "the error is logged")
    log.append(None, b"1")
    log.close(COMPLETED)
    assert (await read_all(log)).count(b"id: ") == 3


async def test_a_late_notification_does_not_end_a_run_that_was_created_again(
    new_worker: NewWorker,
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    one._on_notification("forgotten", "r")
    log.append(None, b"0")
    log.close(COMPLETED)
    await one.written()
    assert (await other.find("r")).status == "completed"
    assert await read_all(await other.find("r")) == await read_all(log)


async def test_a_discard_without_a_reply_is_repeated(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    await new(one)

    async def no_reply(self: RedisLink, *arguments: Any) -> Any:
        monkeypatch.undo()
        raise StoreDown("no reply")

    monkeypatch.setattr(RedisLink, "call", no_reply)
    await one.discard("r")
    await until(lambda: not shared_valkey.client.exists(f"{prefix}:run:r"), "Redis has no run r")


async def test_a_run_whose_creation_got_no_reply_is_discarded(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_worker()
    await one.open()
    call = RedisLink.call

    async def no_reply(self: RedisLink, *arguments: Any) -> Any:
        await call(self, *arguments)
        monkeypatch.undo()
        raise StoreDown("no reply")

    monkeypatch.setattr(RedisLink, "call", no_reply)
    with pytest.raises(StoreDown):
        await new(one)
    await until(lambda: not shared_valkey.client.exists(f"{prefix}:run:r"), "Redis has no run r")


async def test_a_producer_stops_when_redis_does_not_have_its_run_any_more(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str
) -> None:
    log = await new(new_worker())
    shared_valkey.client.delete(f"{prefix}:run:r")
    log.append(None, b"0")
    await until(lambda: not log.producing, "the producer stops")
    await log.room()


async def test_a_producer_stops_when_lost_events_are_not_in_its_memory_either(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str
) -> None:
    one = new_worker()
    log = await new(one, window=3 * SIZE, drops_oldest=True)
    for _ in range(20):
        log.append(None, DATA)
        await one.written()
    shared_valkey.client.hset(f"{prefix}:run:r", "last", "1")
    log.append(None, DATA)
    await until(lambda: not log.producing, "the producer stops")


async def test_a_full_worker_discards_finished_runs_in_redis_too(new_worker: NewWorker) -> None:
    one, other = new_worker(max_runs=1), new_worker()
    (await new(one, "a")).close(COMPLETED)
    await one.written()
    await new(one, "b")
    with pytest.raises(UnknownRun):
        await other.find("a")


async def test_an_unfinished_run_does_not_expire_while_it_has_a_producer(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.RENEWALS_PER_EXTENSION", 1)
    await new(new_worker())
    key = f"{prefix}:run:r"
    shared_valkey.client.pexpire(key, 60_000)
    await until(lambda: shared_valkey.client.ttl(key) > 80_000, "the producer extends the run")
