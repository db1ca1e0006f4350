"""Large values, which a thread stores while the event loop goes on."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from streams.errors import StoreDown, StoreFull
from streams.event import COMPLETED
from streams.log import Limits
from streams.log.sqlite import SQLiteStore
from streams.log.sqlite.writer import LARGE_BYTES, Writer
from streams.log.store import Append, Committed, Fenced
from tests.support.event_logs import info
from tests.support.servers import until

LIMITS = Limits(2**30, 300)
LARGE = b"x" * (LARGE_BYTES + 1)


@pytest.fixture
async def stores(sqlite_url: str) -> AsyncIterator[list[SQLiteStore]]:
    """Two stores on one file. The first one produces the run "r"."""
    stores = [SQLiteStore(sqlite_url), SQLiteStore(sqlite_url)]
    for worker, store in zip("ab", stores, strict=True):
        await store.open(worker)
    await stores[0].create(info(), LIMITS)
    assert await stores[0].append([Append("r", 0, [b"0"])]) == [Committed(0, 0)]
    yield stores
    for store in stores:
        await store.aclose()


async def frames(store: SQLiteStore) -> list[bytes]:
    return [entry.frame for entry in await store.read("r", -1, 100)]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have stored large values."""
    threads: list[str] = []
    execute = Writer._execute

    def noted(self: Writer, statement: str, values: Sequence[object]) -> int:
        threads.append(threading.current_thread().name)
        return execute(self, statement, values)

    monkeypatch.setattr(Writer, "_execute", noted)
    return threads


@pytest.fixture
def before_writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Sets what is awaited when the event loop has handed over a large value."""

    def set_before(before: Callable[[], Awaitable[Any]]) -> None:
        execute = Writer.execute

        async def later(self: Writer, statement: str, values: Sequence[object]) -> int:
            await before()
            return await execute(self, statement, values)

        monkeypatch.setattr(Writer, "execute", later)

    return set_before


async def test_a_thread_stores_events_of_more_than_128_kib(
    stores: list[SQLiteStore], written: list[str]
) -> None:
    store, other = stores
    assert await store.append([Append("r", 1, [LARGE[:-1]])]) == [Committed(1, 0)]
    assert written == []
    assert await store.append([Append("r", 2, [b"2", LARGE])]) == [Committed(3, 0)]
    assert len(written) == 1
    assert written[0].startswith("streams-sqlite-writer")
    assert await frames(other) == [b"0", LARGE[:-1], b"2", LARGE]


async def test_small_events_of_many_runs_are_together_large(
    stores: list[SQLiteStore], written: list[str]
) -> None:
    store, other = stores
    await store.create(info("s"), LIMITS)
    half = LARGE[: LARGE_BYTES // 2 + 1]
    appends = [Append("r", 1, [half]), Append("s", 0, [half])]
    assert await store.append(appends) == [Committed(1, 0), Committed(0, 0)]
    assert len(written) == 1
    assert len(await other.read("s", -1, 9)) == 1


async def test_a_thread_stores_arguments_of_more_than_128_kib(
    stores: list[SQLiteStore], written: list[str]
) -> None:
    store, other = stores
    for size in (LARGE_BYTES, LARGE_BYTES + 1):
        arguments = "a" * size
        await store.create(info(f"of {size}", arguments=arguments), LIMITS)
        assert len(written) == size - LARGE_BYTES
        (state,) = await other.load([f"of {size}"])
        assert state is not None
        assert state.info.arguments == arguments
        await store.append([Append(f"of {size}", 0, [b"0"], None, "completed")])
        (state,) = await other.load([f"of {size}"])
        assert state is not None
        assert state.info.arguments is None


async def test_a_run_whose_arguments_cannot_be_stored_is_not_created(
    stores: list[SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = stores

    def fails(self: Writer, statement: str, values: Sequence[object]) -> int:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    monkeypatch.setattr(Writer, "_execute", fails)
    with pytest.raises(StoreFull, match="disk is full"):
        await store.create(info("s", arguments=LARGE.decode()), LIMITS)
    (state,) = await other.load(["s"])
    assert state is not None, "the caller discards it"
    assert state.info.arguments is None, "no worker can go on with it"


async def test_arguments_of_a_run_that_was_closed_meanwhile_are_not_stored(
    stores: list[SQLiteStore], before_writing: Callable[[Callable[[], Any]], None]
) -> None:
    store, other = stores
    before_writing(lambda: other.close("s", COMPLETED, frees_key=False))
    await store.create(info("s", arguments=LARGE.decode()), LIMITS)
    (state,) = await other.load(["s"])
    assert state is not None
    assert (state.status, state.info.arguments) == ("completed", None)


async def test_a_large_commit_of_a_worker_that_has_lost_its_run_is_refused(
    stores: list[SQLiteStore], before_writing: Callable[[Callable[[], Any]], None]
) -> None:
    store, other = stores
    await store.create(info("s"), LIMITS)
    before_writing(lambda: other.close("r", COMPLETED, frees_key=False))
    appends = [Append("r", 1, [LARGE]), Append("s", 0, [b"0"])]
    assert await store.append(appends) == [Fenced(), Committed(0, 0)]
    kept = await frames(other)
    assert len(kept) == 2
    assert b"event: end" in kept[1]


async def test_a_large_commit_is_right_though_its_run_is_closed_right_after_it(
    stores: list[SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = stores
    execute = Writer.execute

    async def closed_then(self: Writer, statement: str, values: Sequence[object]) -> int:
        count = await execute(self, statement, values)
        await other.close("r", COMPLETED, frees_key=False)
        await store.follow({"r": 0})  # It looks which runs it still produces.
        return count

    monkeypatch.setattr(Writer, "execute", closed_then)
    assert await store.append([Append("r", 1, [LARGE])]) == [Committed(1, 0)]
    assert (await frames(other))[1] == LARGE
    assert await store.append([Append("r", 2, [b"2"])]) == [Fenced()]


async def test_a_large_commit_whose_wait_was_cancelled_can_be_repeated(
    stores: list[SQLiteStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = stores
    begun, go_on = threading.Event(), threading.Event()
    execute = Writer._execute

    def held(self: Writer, statement: str, values: Sequence[object]) -> int:
        begun.set()
        assert go_on.wait(20)
        return execute(self, statement, values)

    monkeypatch.setattr(Writer, "_execute", held)
    append = Append("r", 1, [LARGE, LARGE])
    waiting = asyncio.create_task(store.append([append]))
    await until(begun.is_set, "the thread has begun")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()
    assert await store.append([append]) == [Committed(2, 0)]
    assert await frames(other) == [b"0", LARGE, LARGE]
    assert await store.append([Append("r", 3, [b"3"])]) == [Committed(3, 0)]


async def test_large_values_are_not_written_into_a_file_that_was_moved_away(
    stores: list[SQLiteStore], sqlite_url: str, tmp_path: Any
) -> None:
    store, _ = stores
    file = tmp_path / "runs.db"
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreDown, match="cannot be used now"):
        await store.append([Append("r", 1, [LARGE])])
    (tmp_path / "elsewhere").rename(file)
    assert await store.append([Append("r", 1, [LARGE])]) == [Committed(1, 0)]


async def test_the_thread_ends_with_the_store(sqlite_url: str) -> None:
    store = SQLiteStore(sqlite_url)
    for worker in "ab":
        await store.open(worker)
        await store.create(info(worker, arguments=LARGE.decode()), LIMITS)
        await store.aclose()
        assert not [t.name for t in threading.enumerate() if "sqlite" in t.name]
