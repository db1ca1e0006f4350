"""What no worker has written into a topic makes it start again, and no other one."""

from collections.abc import Callable
from typing import Any

import pytest

from streams import Streams, topic
from streams.event import EventId, frame
from streams.log.shared import leases
from tests.log.shared.test_damage import CASES, CLOSE, FOREIGN, MORE, SQLite, Valkey
from tests.support.servers import connection, serving, until


@topic(replay=10)
def room(name: str) -> None: ...


def state(column: str, value: Any) -> Callable[[Any, str], Any]:
    return lambda db, run: db.set(run, column, value)


STATES: dict[str, list[tuple[str, Any]]] = {
    "sqlite": [("info", 7), ("info", b'{"run":"odd"}'), ("status", "odd"), ("status", "failed")]
    + [(f'"{column}"', "odd") for column in ("window", "size")],
    "redis": [("info", "{"), ("info", "7"), ("info", '{"run":7}'), ("status", "odd")]
    + [(column, "odd") for column in ("first", "size", "window", "retain")]
    + [("status", "failed"), ("first", 2), ("last", 0), ("last", -7), ("last", "1.5")]
    + [("first", -1), ("window", 2**60)]
    + [("size", "nan")],
}


async def copied(db: Valkey, run: str) -> None:
    await db.insert(run, {"f": frame(run.encode(), 1, None, b"0")})


async def exchanged(db: Valkey, run: str) -> None:
    await db.delete("log", run)
    await db.add(run, {"f": FOREIGN}, 2)


TOPICS = [
    *CASES,
    *(
        pytest.param("sqlite", damage, id=name)
        for name, damage in MORE.items()
        if name != "0.5 as a number"  # Nobody looks there: it is not the newest event.
    ),
    *(
        pytest.param(kind, state(column, value), id=f"{value!r} as {column} in {kind}")
        for kind, columns in STATES.items()
        for column, value in columns
    ),
    pytest.param("redis", lambda db, run: db.delete("log", run), id="no events in Redis"),
    pytest.param("redis", copied, id="a copy of an event in Redis"),
    pytest.param("redis", exchanged, id="a foreign event in the place of one in Redis"),
    pytest.param("sqlite", lambda db, run: db.exchange_info(run), id="another run's state"),
    pytest.param("sqlite", lambda db, run: db.delete_events(run), id="no events in SQLite"),
]


def by_hand(url: str) -> Any:
    return Valkey(url) if url.startswith("redis") else SQLite(url)


@pytest.mark.parametrize(("kind", "damage"), TOPICS)
async def test_a_damaged_topic_starts_again_at_the_next_publish(
    kind: str,
    damage: Callable[[Any, str], Any],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    async with Streams([room], log=url) as one, Streams([room], log=url) as other:

        async def publish(streams: Streams, name: str) -> EventId:
            return EventId.parse(await streams.publish("room", "x", name=name))

        first, neighbour = await publish(one, "damaged"), await publish(one, "neighbour")
        await damage(by_hand(url), first.run)
        second, third = await publish(one, "damaged"), await publish(other, "damaged")
        assert second.run == third.run != first.run
        assert (second.number, third.number) == (1, 2)
        assert await publish(other, "neighbour") == EventId(neighbour.run, 2)
    assert caplog.text.count("is damaged in the log: ") == 1
    assert f"run {first.run} is damaged in the log: nothing can follow" in caplog.text
    assert "cannot be used" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda db, run: db.insert(run, {"f": FOREIGN} if isinstance(db, Valkey) else FOREIGN),
        state("info", "{"),
        state("window", "odd"),
    ],
    ids=["a foreign frame", "text as the state", "text as the window"],
)
async def test_viewers_of_a_damaged_topic_come_back_to_the_one_that_starts_again(
    damage: Callable[[Any, str], Any],
    store_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "RENEWALS_PER_REFRESH", 10**6)  # A worker learns it only if told.
    async with Streams([room], log=store_url) as publishing:
        async with serving(Streams([room], log=store_url)) as url:
            path = "/streams/room?name=a"
            async with (
                connection(url, path, headers=CLOSE) as viewer,
                connection(url, "/streams/room?name=b") as neighbour,
            ):
                last = await publishing.publish("room", 1, name="a")
                await publishing.publish("room", 1, name="b")
                await viewer.until(lambda s: b"data: 1" in s.body, "it has event 1")
                await damage(by_hand(store_url), viewer.run)
                await publishing.publish("room", 2, name="a")
                await viewer.to_the_end(20)
                await publishing.publish("room", 2, name="b")
                await neighbour.until(lambda s: b"data: 2" in s.body, "the neighbour goes on")
            async with connection(url, path, headers=f"Last-Event-ID: {last}\r\n") as again:
                await again.until(lambda s: b"data: 2" in s.body, "it has event 2")
                assert b"event: gap" in again.body
                assert again.run != viewer.run
    assert f"run {viewer.run} is damaged in the log: " in caplog.text


async def test_a_topic_whose_state_cannot_be_read_starts_again_at_the_next_viewer(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Streams([room], log=store_url)) as url:
        async with Streams([room], log=store_url) as publishing:
            run = EventId.parse(await publishing.publish("room", 1, name="a")).run
            await by_hand(store_url).set(run, "info", f'{{"run":"{run}","source":7}}')
            async with connection(url, "/streams/room?name=a") as viewer:
                await viewer.until(lambda s: b"event: start" in s.body, "it has begun")
                last = EventId.parse(await publishing.publish("room", 2, name="a"))
                assert last == EventId(viewer.run, 1)
                assert last.run != run
    assert caplog.text.count(f"run {run} is damaged in the log: ") == 1


async def test_a_viewer_of_a_damaged_topic_lets_the_next_publish_start_it_again(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = by_hand(store_url)
    foreign: Any = {"f": FOREIGN} if isinstance(store, Valkey) else FOREIGN
    viewing = Streams([room], log=store_url)
    async with Streams([room], log=store_url) as publishing, serving(viewing) as url:
        async with connection(url, "/streams/room?name=a", headers=CLOSE) as viewer:
            await viewer.until(lambda s: b"event: start" in s.body, "it has begun")
            await store.insert(viewer.run, foreign)
            await viewer.to_the_end(20)
        await until(lambda: not viewing.log.readers, "the viewer has left")
        last = EventId.parse(await publishing.publish("room", 2, name="a"))
        assert (last.number, last.run != viewer.run) == (1, True)
    assert f"run {viewer.run} is damaged in the log: " in caplog.text


async def test_a_unique_key_that_is_no_text_is_replaced(redis_url: str) -> None:
    store = Valkey(redis_url)
    async with Streams([room], log=redis_url) as streams:
        first = await streams.publish("room", 1, name="a")
        store.replace_keys("unique")
        second = await streams.publish("room", 1, name="a")
    assert EventId.parse(first).run != EventId.parse(second).run
