"""What no worker has written into a store ends the run that it is in, and no other."""

import asyncio
import sqlite3
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import httpx
import pytest
import redis

from streams import Streams, source
from streams.event import COMPLETED, frame
from streams.log import Limits, Status
from streams.log.shared import SharedLog
from streams.log.store import Append, Committed, Fenced
from streams.sources import counter
from tests.log.shared.workers import kill, numbers, workers
from tests.support.event_logs import info
from tests.support.servers import Connection, connection, every_event, serving
from tests.support.stores import STORES

CLOSE = "Connection: close\r\n"

FOREIGN = b'id: AAAAAAAAAAAAAAAAAAAAAA.2\ndata: {"number":99}\n\n'


@source
async def steady(*, after: int = 0) -> AsyncIterator[dict[str, int]]:
    """Counts for as long as somebody looks."""
    for number in range(after, 10_000):
        yield {"number": number}
        await asyncio.sleep(0.05)


class SQLite:
    """Changes a SQLite file by hand."""

    def __init__(self, url: str) -> None:
        self._path = url.removeprefix("sqlite:")

    def _execute(self, statement: str, *values: Any) -> None:
        with closing(sqlite3.connect(self._path, timeout=10)) as db, db:
            db.execute(statement, values)

    async def insert(self, run: str, frames: Any, ends: Any = None, status: Any = None) -> None:
        """Inserts a batch of one event after the newest one, before its producer does."""
        if ends is None:
            ends = array("I", [len(frames)]).tobytes()
        for _ in range(100):
            try:
                self._execute(
                    "INSERT INTO batch (run, last, status, frees_key, ends, frames) SELECT id, "
                    "1 + (SELECT max(last) FROM batch WHERE run = run.id), ?, 0, ?, ? "
                    "FROM run WHERE name = ?",
                    *(status, ends, frames, run),
                )
                return
            except sqlite3.IntegrityError:
                await asyncio.sleep(0.001)

    async def insert_at(self, run: str, last: Any) -> None:
        """Inserts an event with this number, whatever the schema says."""
        with closing(sqlite3.connect(self._path, timeout=10)) as db, db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            db.execute(
                "INSERT INTO batch (run, last, frees_key, ends, frames) "
                "SELECT id, ?, 0, ?, ? FROM run WHERE name = ?",
                (last, b"\1\0\0\0", b"x", run),
            )

    async def set(self, run: str, column: str, value: Any) -> None:
        self._execute(f"UPDATE run SET {column} = ? WHERE name = ?", value, run)

    async def delete_events(self, run: str) -> None:
        self._execute("DELETE FROM batch WHERE run = (SELECT id FROM run WHERE name = ?)", run)

    async def exchange_info(self, run: str) -> None:
        """Puts another run's id into the state of a run."""
        self._execute("UPDATE run SET info = replace(info, name, 'odd') WHERE name = ?", run)

    async def set_cursor(self, run: str, value: Any) -> None:
        self._execute(
            "INSERT OR REPLACE INTO cursor (run, worker, after, readers) "
            "SELECT id, 'nobody', ?, 1 FROM run WHERE name = ?",
            *(value, run),
        )


SQLITE: dict[str, Callable[[SQLite, str], Any]] = {
    "a foreign frame": lambda db, run: db.insert(run, FOREIGN),
    "an empty frame": lambda db, run: db.insert(run, b""),
    "a truncated frame": lambda db, run: db.insert(run, b"id: "),
    "a text as a frame": lambda db, run: db.insert(run, "text"),
    "a number as a frame": lambda db, run: db.insert(run, 7, b"\1\0\0\0"),
    "ends of three bytes": lambda db, run: db.insert(run, FOREIGN, b"abc"),
    "ends beyond the frames": lambda db, run: db.insert(run, FOREIGN, b"\xff" * 8),
    "no ends": lambda db, run: db.insert(run, FOREIGN, b""),
    "an unknown status": lambda db, run: db.insert(run, FOREIGN, None, "odd"),
    "the last number of an event": lambda db, run: db.insert_at(run, 2**53 - 1),
    "the last number but one of an event": lambda db, run: db.insert_at(run, 2**53 - 2),
    "a text as the number of an event": lambda db, run: db.insert_at(run, "odd"),
    "a refusal of a run that is open": lambda db, run: db.insert(run, FOREIGN, None, "refused"),
}


class Valkey:
    """Changes a Redis by hand."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url.partition("?")[0])
        self._prefix = url.partition("prefix=")[2]

    def key(self, kind: str, run: str) -> str:
        return f"{self._prefix}:{kind}:{run}"

    async def insert(self, run: str, fields: dict[Any, Any], number: int | None = None) -> None:
        key = self.key("log", run)
        for _ in range(100):
            newest = self._client.xrevrange(key, count=1)[0][0]
            after = int(newest.partition(b"-")[0]) + 1
            try:
                self._client.xadd(key, fields, id=f"{number or after}-0")
                return
            except redis.ResponseError:
                await asyncio.sleep(0.001)

    async def add(self, run: str, fields: dict[Any, Any], number: int) -> None:
        self._client.xadd(self.key("log", run), fields, id=f"{number}-0")

    async def replace(self, kind: str, run: str) -> None:
        self._client.set(self.key(kind, run), "text")

    async def delete(self, kind: str, run: str) -> None:
        self._client.delete(self.key(kind, run))

    def replace_keys(self, kind: str) -> None:
        """Puts a list in the place of all keys of a kind."""
        for key in self._client.keys(f"{self._prefix}:{kind}:*"):
            self._client.delete(key)
            self._client.rpush(key, "odd")

    async def set(self, run: str, field: str, value: Any) -> None:
        self._client.hset(self.key("run", run), field, value)

    async def set_cursor(self, run: str, value: str) -> None:
        self._client.hset(self.key("cursors", run), "nobody", value)

    async def notify(self, inbox: str, fields: dict[Any, Any]) -> None:
        self._client.xadd(self.key("inbox", inbox), fields)


REDIS: dict[str, Callable[[Valkey, str], Any]] = {
    "a foreign frame": lambda db, run: db.insert(run, {"f": FOREIGN}),
    "an empty frame": lambda db, run: db.insert(run, {"f": ""}),
    "a truncated frame": lambda db, run: db.insert(run, {"f": "id: "}),
    "an unknown field": lambda db, run: db.insert(run, {"odd": "x", "odder": "y"}),
    "an unknown status": lambda db, run: db.insert(run, {"f": FOREIGN, "s": "odd"}),
    "bytes as a status": lambda db, run: db.insert(run, {"f": FOREIGN, "s": b"\xff"}),
    "a number of an event near 2^53": lambda db, run: db.insert(run, {"f": "x"}, 2**53),
    "a text in place of the events": lambda db, run: db.replace("log", run),
    "a text in place of the run": lambda db, run: db.replace("run", run),
    "a newest number near 2^53": lambda db, run: db.set(run, "last", 2**53 - 2),
    "a newest number beyond 2^53": lambda db, run: db.set(run, "last", 2**60),
    "a text as the newest number": lambda db, run: db.set(run, "last", "odd"),
}

CASES = [
    *(pytest.param("sqlite", damage, id=f"{name} in SQLite") for name, damage in SQLITE.items()),
    *(pytest.param("redis", damage, id=f"{name} in Redis") for name, damage in REDIS.items()),
]


def has(number: int) -> Callable[[Connection], bool]:
    return lambda stream: number in numbers(stream.body)


async def begun(stream: Connection) -> None:
    await stream.until(lambda s: 2 in numbers(s.body), "number 2 is there")


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """The URL of a store of the kind that the test is for."""
    return str(request.getfixturevalue(f"{kind}_url"))


@pytest.fixture
def by_hand(kind: str, url: str) -> Any:
    """What changes the store without this package."""
    return SQLite(url) if kind == "sqlite" else Valkey(url)


@pytest.mark.parametrize(("kind", "damage"), CASES)
async def test_a_damaged_run_ends_and_its_neighbours_go_on(
    damage: Callable[[Any, str], Any], url: str, by_hand: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with workers(2, url, [steady, counter]) as (one, other):
        async with (
            connection(one, "/streams/steady", headers=CLOSE) as started,
            connection(one, "/streams/steady") as neighbour,
        ):
            await begun(started)
            await begun(neighbour)
            async with (
                connection(other, f"/runs/{started.run}", headers=CLOSE) as viewed,
                connection(other, f"/runs/{neighbour.run}") as healthy,
            ):
                await begun(viewed)
                await begun(healthy)
                await damage(by_hand, started.run)
                await viewed.to_the_end(20)
                await started.to_the_end(20)
                for stream in (neighbour, healthy):
                    last = max(numbers(stream.body))
                    await stream.until(has(last + 10), "ten more numbers", 10)
                    assert numbers(stream.body) == list(range(len(numbers(stream.body))))
                async with httpx.AsyncClient(base_url=other) as client:
                    for _ in range(2):
                        assert await every_event(client, "/streams/counter?count=1&interval=0.01")
    assert f"run {started.run} is damaged in the log: " in caplog.text
    assert "unexpected error" not in caplog.text


def numbered(value: Any) -> Callable[[SQLite, str], Any]:
    return lambda db, run: db.insert_at(run, value)


MORE: dict[str, Callable[[SQLite, str], Any]] = {
    "text as the state": lambda db, run: db.set(run, "info", "{"),
    "bytes as the state": lambda db, run: db.set(run, "info", b"\xff"),
    **{
        f"{value!r} as a number": numbered(value)
        for value in (2**53, 2**63 - 1, 1e300, 0.5, 3.5, b"odd")
    },
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [*CASES, *(pytest.param("sqlite", damage, id=name) for name, damage in MORE.items())],
)
async def test_one_operation_appends_to_the_neighbours_of_a_damaged_run(
    kind: str,
    damage: Callable[[Any, str], Any],
    url: str,
    by_hand: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, other = STORES[kind](url), STORES[kind](url)
    for worker, opened in (("one", store), ("other", other)):
        await opened.open(worker)
        await opened.renew([])
    runs = ("damaged", "neighbour", "closed")
    for run in runs:
        await store.create(info(run), Limits(2**20, 300))

    def append(run: str, number: int, status: Status | None = None) -> Append:
        return Append(run, number, [frame(run.encode(), number, None, b"0")], status=status)

    for number in (0, 1):
        await store.append([append(run, number) for run in runs])
    await damage(by_hand, "damaged")
    for number in (2, 3, 4):
        if number == 3:  # Whoever closes a run has its producer look what it still produces.
            await other.close("closed", COMPLETED, frees_key=False)
        end: Status | None = "completed" if number == 4 else None
        outcomes = await store.append([append("damaged", number, end), append("neighbour", number)])
        assert outcomes[1] == Committed(number, 0)
    (state,) = await other.load(["damaged"])
    if isinstance(outcomes[0], Fenced):
        assert state is None or (state.last, state.status) in [(3, "failed"), (2, "refused")]
    for opened in (store, other):
        await opened.aclose()
    assert "cannot be used" not in caplog.text


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("info", b"{"),
        ("info", b'{"run":7}'),
        ("info", 7),
        ("info", b"\xff"),
        ("arguments", b"\xff"),
        ("status", "odd"),
        ("window", "odd"),
        ("retain", "odd"),
    ],
)
async def test_a_run_whose_state_cannot_be_read_is_unknown(
    column: str, value: Any, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_redis = store_url.startswith("redis")
    store: Any = Valkey(store_url) if is_redis else SQLite(store_url)
    async with workers(2, store_url, [steady]) as (one, other):
        async with (
            connection(
                one, "/streams/steady", headers="Idempotency-Key: kkkkkkkkkkkkkkkkk\r\n"
            ) as damaged,
            connection(one, "/streams/steady") as neighbour,
        ):
            await begun(damaged)
            await store.set(damaged.run, f'"{column}"' if not is_redis else column, value)
            async with httpx.AsyncClient(base_url=other) as client:
                answer = await client.get(f"/runs/{damaged.run}")
                assert answer.status_code == 404, answer.text
                answer = await client.get("/runs?key=kkkkkkkkkkkkkkkkk")
                assert answer.json()["runs"] == []
            await begun(neighbour)
    assert "is damaged in the log: " in caplog.text
    assert "unexpected error" not in caplog.text


async def test_a_damaged_run_of_a_dead_worker_ends_and_the_others_are_taken_over(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_redis = store_url.startswith("redis")
    store: Any = Valkey(store_url) if is_redis else SQLite(store_url)
    dying, survivor = Streams([steady], log=store_url), Streams([steady], log=store_url)
    async with serving(dying) as one, serving(survivor) as other:
        async with (
            connection(one, "/streams/steady") as damaged,
            connection(one, "/streams/steady") as neighbour,
        ):
            await begun(damaged)
            await begun(neighbour)
            async with (
                connection(other, f"/runs/{damaged.run}") as viewed,
                connection(other, f"/runs/{neighbour.run}") as healthy,
            ):
                await begun(viewed)
                await begun(healthy)
                await store.set(damaged.run, "info", b"odd")
                assert isinstance(dying.log, SharedLog)
                await kill(dying.log)
                if not is_redis:
                    await dying.log.store.leave()
                await viewed.until(lambda s: s.terminated, "the damaged run has ended", 30)
                last = max(numbers(healthy.body))
                await healthy.until(
                    lambda s: last + 5 in numbers(s.body), "the neighbour goes on", 30
                )
        await dying.log.open()
    assert f"run {damaged.run} is damaged in the log: " in caplog.text


async def test_what_no_worker_has_sent_to_an_inbox_is_ignored(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Valkey(redis_url)
    async with workers(2, redis_url, [steady]) as (one, other):
        async with connection(one, "/streams/steady") as started:
            await begun(started)
            async with httpx.AsyncClient(base_url=other) as client:
                worker = (await client.get("/health")).json()["worker"]
            for fields in (
                {"odd": "1"},
                {"kind": "odd", "run": "x"},
                {"kind": "cursor", "run": started.run, "after": "x", "readers": "-1"},
                {"kind": "cursor"},
                {"kind": "left", "worker": "nobody"},
                {"kind": b"\xff", "run": b"\xff"},
            ):
                await store.notify(worker, fields)
            async with connection(other, f"/runs/{started.run}") as viewed:
                await begun(viewed)
                store._client.delete(store.key("inbox", worker))
                await store.replace("inbox", worker)
                last = max(numbers(viewed.body))
                await viewed.until(lambda s: last + 5 in numbers(s.body), "five more numbers", 20)
    assert "unexpected error" not in caplog.text


@pytest.mark.parametrize("value", ["odd", "", -7])
async def test_a_cursor_that_no_worker_has_set_holds_up_nobody(
    value: Any, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    is_redis = store_url.startswith("redis")
    store: Any = Valkey(store_url) if is_redis else SQLite(store_url)
    async with workers(2, store_url, [steady]) as (one, _):
        async with (
            connection(one, "/streams/steady") as started,
            connection(one, "/streams/steady") as neighbour,
        ):
            await begun(started)
            await store.set_cursor(started.run, str(value) if is_redis else value)
            await begun(neighbour)
            last = max(numbers(neighbour.body))
            await neighbour.until(lambda s: last + 10 in numbers(s.body), "ten more numbers", 10)
    assert "unexpected error" not in caplog.text
