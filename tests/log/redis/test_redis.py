"""RedisStore: keys that are gone or wrong, expiry, connections. All workers are in this process."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from streams.errors import UnknownRun
from streams.event import COMPLETED
from streams.log import Limits, Selection
from streams.log.redis import RedisStore
from streams.log.redis.scripts import PUBLISH
from streams.log.store import Publication, Published
from streams.sources import counter
from tests.log.conftest import NewWorker
from tests.log.shared.workers import until_async, workers
from tests.support.event_logs import DATA, SIZE, info, new, read_all
from tests.support.servers import Connection, connection, until
from tests.support.valkey import Valkey


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
    await until(lambda: not bad.producing, "the bad run has ended")
    await asyncio.wait_for(one.written(), 5)
    assert good.producing


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


async def test_an_unfinished_run_does_not_expire_while_it_has_a_producer(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.RENEWALS_PER_EXTENSION", 1)
    await new_worker().create(info(key="k"), Limits(window=2**20, retain=300))
    client = shared_valkey.client
    keys: Any = [f"{prefix}:run:r", *client.keys(f"{prefix}:unique:*")]
    for key in keys:
        client.pexpire(key, 60_000)
    await until(
        lambda: all(client.ttl(key) > 80_000 for key in keys),
        "the producer extends the run and its unique key",
    )
    assert len(keys) == 2


async def test_all_runs_are_those_with_the_prefix_even_if_it_looks_like_a_pattern(
    redis_url: str,
) -> None:
    store, other = RedisStore(f"{redis_url}-*[x]"), RedisStore(f"{redis_url}-yx")
    for each in (store, other):
        await each.open("one")
        await each.create(info(), Limits(window=2**20, retain=300))
        assert [state.info.run for state in await each.select(Selection())] == ["r"]
        await each.aclose()


async def test_runs_that_have_expired_leave_the_indexes(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str
) -> None:
    store, client = new_worker().store, shared_valkey.client
    indexes = [f"{prefix}:owner:ann", f"{prefix}:keys"]
    await store.open("one")
    for number in range(100):
        run = info(f"r{number}", owner="ann", key=f"k{number}")
        await store.create(run, Limits(window=2**20, retain=300))
        client.delete(f"{prefix}:run:r{number}")
    for index in indexes:
        assert int(client.zcard(index)) < 20, "creations remove some"
        assert int(client.ttl(index)) > 80_000
    for selection in (Selection(owner="ann"), Selection(key_prefix="")):
        assert await store.select(selection) == []
    assert [client.zcard(index) for index in indexes] == [0, 0], "a selection removes the others"


async def test_a_reader_ends_when_the_run_expires(
    new_worker: NewWorker, shared_valkey: Valkey, prefix: str
) -> None:
    one, other = new_worker(), new_worker()
    log = await new(one)
    log.append(None, b"0")
    log.close(COMPLETED)
    await one.written()
    found = await other.find("r")
    shared_valkey.client.delete(f"{prefix}:log:r")
    assert await read_all(found) == b""
    shared_valkey.client.delete(f"{prefix}:run:r")
    with pytest.raises(UnknownRun):
        await one.find("r")


async def test_500_readers_on_2_workers_need_at_most_10_connections_to_redis(
    shared_valkey: Valkey, redis_url: str
) -> None:
    before = len(shared_valkey.client.client_list())
    opening = anyio.CapacityLimiter(20)  # A busy machine refuses some of 250 that come at once.
    async with workers(2, redis_url, [counter]) as (one, other), anyio.create_task_group() as group:
        reading = 0

        async def has_1(stream: Connection) -> None:
            await stream.until(lambda stream: b".1\n" in stream.body, "event 1 is there", 30)

        async def view(number: int) -> None:
            nonlocal reading
            path = "/streams/counter?interval=30&count=2"
            async with AsyncExitStack() as stack:
                async with opening:
                    stream = await stack.enter_async_context(connection(one, path))
                    await has_1(stream)
                    again = connection(other, f"/runs/{stream.run}")
                    await has_1(await stack.enter_async_context(again))
                reading += 2
                await anyio.sleep_forever()

        for number in range(250):
            group.start_soon(view, number)
        await until(lambda: reading == 500, "500 readers are attached", seconds=40)
        connections = len(shared_valkey.client.client_list()) - before
        group.cancel_scope.cancel()
    assert connections <= 2 * 5


async def test_a_publish_whose_reply_was_lost_is_repeated_without_a_second_event(
    new_worker: NewWorker,
) -> None:
    log, other = new_worker(), new_worker()
    limits = Limits(window=2**20, retain=300)

    async def publish(token: str, *, repeated: bool = False, status: Any = None) -> Published:
        await log.open()
        return await log.store.publish(
            Publication(
                info=info("t", shared=True, topic=True, arguments_hash="h"),
                limits=limits,
                event=(None, token.encode()),
                keep=300,
                token=token,
                repeated=repeated,
                status=status,
            )
        )

    assert await publish("a") == Published("t", 1)
    assert await publish("b") == Published("t", 2)
    assert await publish("a", repeated=True) == Published("t", 1)
    assert await publish("c", repeated=True) == Published("t", 3), "that call had not arrived"
    await publish("d", status="completed")
    assert await publish("b", repeated=True) == Published("t", 2), "it came before the end"
    assert await publish("e", repeated=True) == Published("t", 4, ended=True)
    events = await read_all(await other.find("t"), 0)
    assert events.count(b"id: ") == 4


def publication_of(number: int) -> Publication:
    return Publication(
        info=info("t", shared=True, topic=True, arguments_hash="h"),
        limits=Limits(window=2**20, retain=300),
        event=(None, b"%d" % number),
        keep=300,
        token=f"token-{number}",
    )


async def test_publishes_that_wait_at_the_same_time_share_round_trips(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(redis_url)
    await store.open("one")
    sizes = []
    call_all = store._link.call_all

    async def counting(calls: Any) -> Any:
        sizes.append(len(calls))
        return await call_all(calls)

    monkeypatch.setattr(store._link, "call_all", counting)
    published = await asyncio.gather(*(store.publish(publication_of(n)) for n in range(250)))
    assert [each.last for each in published] == list(range(1, 251)), "in the order of the calls"
    assert sizes == [1, 100, 100, 49]
    await store.aclose()


async def test_a_publish_that_is_cancelled_harms_no_other(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(redis_url)
    await store.open("one")
    gate, arrived = asyncio.Event(), asyncio.Event()
    call_all = store._link.call_all

    async def gated(calls: Any) -> Any:
        arrived.set()
        await gate.wait()
        return await call_all(calls)

    monkeypatch.setattr(store._link, "call_all", gated)
    sending, waiting, other = [
        asyncio.create_task(store.publish(publication_of(number))) for number in range(3)
    ]
    await asyncio.wait_for(arrived.wait(), 5)
    waiting.cancel()
    sending.cancel()
    gate.set()
    assert await asyncio.wait_for(other, 5) == Published("t", 1)
    for task in (sending, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task
    await store.aclose()


async def test_a_publish_whose_round_trip_another_one_cancels_is_repeated(
    new_worker: NewWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_worker()
    await log.open()
    link: Any = log.store._link  # type: ignore[attr-defined]
    call_all, sizes, arrived = link.call_all, [], asyncio.Event()

    async def second_hangs(calls: Any) -> Any:
        replies = await call_all(calls)
        if calls[0][0] is PUBLISH:
            sizes.append(len(calls))
            if len(sizes) == 2:
                arrived.set()
                await asyncio.Event().wait()
        return replies

    monkeypatch.setattr(link, "call_all", second_hangs)
    topic, limits = publication_of(0).info, Limits(window=2**20, retain=300)
    tasks = [asyncio.create_task(log.publish(topic, limits, (None, b"%d" % n))) for n in range(4)]
    await asyncio.wait_for(arrived.wait(), 5)
    assert sizes == [1, 3]
    tasks[1].cancel()  # It is the one that makes the round trip for the others, too.
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert isinstance(done[1], asyncio.CancelledError)
    assert [str(each) for n, each in enumerate(done) if n != 1] == ["t.1", "t.3", "t.4"]
    assert (await log.find("t")).last == 4, "no event is there twice"
