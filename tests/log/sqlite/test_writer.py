"""Large values, which a thread stores while the event loop goes on."""

import asyncio
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from streams.errors import StoreDown, StoreFull
from streams.event import COMPLETED, frame
from streams.log import Limits, Selection
from streams.log.sqlite import SQLiteStore
from streams.log.sqlite.writer import LARGE_BYTES, Writer
from streams.log.store import Append, Committed, Fenced, Forgotten
from tests.support.event_logs import info
from tests.support.servers import until

LIMITS = Limits(2**30, 300)


def large(number: int, run: str = "r") -> bytes:
    return frame(run.encode(), number, None, b"x" * LARGE_BYTES)


@pytest.fixture
async def store(sqlite_url: str) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), LIMITS)
    await store.append([Append("r", 0, [frame(b"r", 0, None, b"0")])])
    yield store
    await store.aclose()


@pytest.fixture
def path(sqlite_url: str) -> str:
    return sqlite_url.removeprefix("sqlite:")


class Gate:
    """Holds up the writer before its statements, and after them, while it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before, self.after = threading.Event(), threading.Event()
        self.before.set()
        self.after.set()
        self.waiting = self.executed = 0
        execute = Writer._execute

        def held_up(*args: object) -> int:
            self.waiting += 1
            assert self.before.wait(20)
            rows = execute(*args)  # type: ignore[arg-type]
            self.executed += 1
            assert self.after.wait(20)
            return rows

        monkeypatch.setattr(Writer, "_execute", held_up)

    async def until_waiting(self, times: int = 1) -> None:
        await until(lambda: self.waiting == times, "the writer has a statement")

    async def until_executed(self, times: int = 1) -> None:
        await until(lambda: self.executed == times, "the writer has executed a statement")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.before.set()
    gate.after.set()


async def numbers(store: SQLiteStore, run: str = "r") -> list[int]:
    entries = await store.read(run, -1, 1000)
    for entry in entries:
        assert entry.frame.startswith(b"id: %b.%d\n" % (run.encode(), entry.number))
    return [entry.number for entry in entries]


async def test_large_events_that_the_store_has_are_skipped(store: SQLiteStore) -> None:
    for _ in range(2):
        assert await store.append([Append("r", 1, [large(1)])]) == [Committed(1, 0)]
    assert await store.append([Append("r", 1, [large(1), large(2)])]) == [Committed(2, 0)]
    assert await numbers(store) == [0, 1, 2]


async def test_a_commit_counts_even_if_the_file_is_moved_away_right_after_it(
    store: SQLiteStore, path: str, gate: Gate
) -> None:
    gate.after.clear()
    append = asyncio.create_task(store.append([Append("r", 1, [large(1)])]))
    await gate.until_executed()
    os.rename(path, f"{path}.moved")
    store._link._next_check = 0.0
    gate.after.set()
    assert await append == [Committed(1, 0)]
    os.rename(f"{path}.moved", path)
    assert await store.append([Append("r", 1, [large(1), large(2)])]) == [Committed(2, 0)]
    with closing(sqlite3.connect(path)) as db:
        batches = db.execute("SELECT last, length(ends) / 4 FROM batch").fetchall()
    assert batches == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize(
    "frames", [[large(1)], [large(1), large(2)], [large(1), frame(b"r", 2, None, b"2")]]
)
@pytest.mark.parametrize("held", ["before", "after"])
async def test_a_cancelled_append_can_be_repeated(
    frames: list[bytes], held: str, store: SQLiteStore, gate: Gate
) -> None:
    getattr(gate, held).clear()
    append = asyncio.create_task(store.append([Append("r", 1, [large(1)])]))
    await (gate.until_waiting() if held == "before" else gate.until_executed())
    append.cancel()
    await asyncio.wait([append])
    repeated = asyncio.create_task(store.append([Append("r", 1, frames)]))
    await asyncio.sleep(0)
    gate.before.set()
    gate.after.set()
    last = len(frames)
    assert await repeated == [Committed(last, 0)]
    await store.append([Append("r", last + 1, [large(last + 1)])])  # after the thread
    assert await numbers(store) == list(range(last + 2))


async def test_nothing_is_left_of_a_run_that_is_discarded_during_its_commit(
    store: SQLiteStore, path: str, gate: Gate
) -> None:
    gate.before.clear()
    end = [large(1), frame(b"r", 2, b"end", COMPLETED.encode())]
    append = asyncio.create_task(store.append([Append("r", 1, end, status="completed")]))
    await gate.until_waiting()
    await store.discard("r")
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM batch)"
        await until(lambda: db.execute(query).fetchone() == (0, 0), "the keeper has deleted it")
        gate.before.set()
        assert await append == [Forgotten()]
        assert db.execute(query).fetchone() == (0, 0)


async def test_a_run_made_again_during_a_commit_begins_with_its_first_event(
    store: SQLiteStore, gate: Gate
) -> None:
    gate.after.clear()
    append = asyncio.create_task(store.append([Append("r", 1, [large(1)])]))
    await gate.until_executed()
    await store.discard("r")
    await store.create(info(), LIMITS)
    gate.after.set()
    await append
    first = frame(b"r", 0, None, b"0")
    assert await store.append([Append("r", 0, [first])]) == [Committed(0, 0)]
    assert await numbers(store) == [0]


async def test_a_large_value_is_not_written_into_a_file_that_replaced_the_first(
    store: SQLiteStore, path: str, tmp_path: Path
) -> None:
    other = SQLiteStore(f"sqlite:{tmp_path}/new.db")
    await other.open("one")
    await other.create(info(), LIMITS)
    await other.append([Append("r", 0, [frame(b"r", 0, None, b"0")])])
    await other.aclose()
    os.rename(path, f"{path}.old")
    shutil.copyfile(tmp_path / "new.db", path)
    store._link._next_check = asyncio.get_running_loop().time() + 60
    with pytest.raises(StoreDown) as down:
        await store.append([Append("r", 1, [large(1)])])
    assert "runs.db" not in str(down.value)
    await store.aclose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT last FROM batch").fetchall() == [(0,)]


@pytest.mark.parametrize("held", ["before", "after"])
async def test_a_run_that_is_claimed_during_its_commit_is_lost_or_has_it(
    held: str, store: SQLiteStore, sqlite_url: str, gate: Gate
) -> None:
    getattr(gate, held).clear()
    append = asyncio.create_task(store.append([Append("r", 1, [large(1)])]))
    await (gate.until_waiting() if held == "before" else gate.until_executed())
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"), isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE run SET producer = 'other'")
        db.execute("UPDATE generation SET number = number + 1")
        db.execute("COMMIT")
    news = await store.follow({})
    assert [notice.kind for notice in news.notices] == ["claimed"]
    gate.before.set()
    gate.after.set()
    assert await append == [Fenced() if held == "before" else Committed(1, 0)]
    assert await numbers(store) == ([0] if held == "before" else [0, 1])
    assert await store.append([Append("r", 2, [large(2)])]) == [Fenced()]


async def test_a_large_commit_stores_what_it_may_when_some_of_its_runs_are_lost(
    store: SQLiteStore, path: str, gate: Gate
) -> None:
    await store.create(info("lost"), LIMITS)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE run SET producer = 'other' WHERE name = 'lost'")
        db.execute("UPDATE generation SET number = number + 1")
    appends = [Append("lost", 0, [large(0, "lost")]), Append("r", 1, [large(1)])]
    assert await store.append(appends) == [Fenced(), Committed(1, 0)]
    assert gate.executed == 1, "the writer has stored nothing"
    assert await numbers(store) == [0, 1]


async def test_a_row_where_a_large_event_belongs_is_reported(store: SQLiteStore, path: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        columns = "(run, last, frees_key, ends, frames)"
        db.execute(f"INSERT INTO batch {columns} VALUES (1, 1, 0, x'01000000', 'x')")
    assert await store.append([Append("r", 1, [large(1)])]) == [Committed(1, 0)]
    assert [entry.frame for entry in await store.read("r", 0, 9)] != [large(1)]


async def test_a_discarded_run_has_no_arguments(store: SQLiteStore, path: str) -> None:
    arguments = f'"{"x" * LARGE_BYTES}"'
    await store.create(info("l", arguments=arguments), LIMITS)
    (state,) = await store.load(["l"])
    assert state is not None
    assert state.info.arguments == arguments
    await store.discard("l")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM run WHERE arguments NOT NULL").fetchone() == (0,)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_nothing_is_left_of_the_writers_of_closed_stores(sqlite_url: str, path: str) -> None:
    store = SQLiteStore(sqlite_url)
    for worker in ("one", "two"):
        await store.open(worker)
        await store.create(info(worker), LIMITS)
        assert await store.append([Append(worker, 0, [large(0, worker)])]) == [Committed(0, 0)]
        assert writer_threads() == 1
        await store.aclose()
        assert writer_threads() == 0
        files = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        assert not [fd for fd in files if fd.is_symlink() and os.readlink(fd).startswith(path)]


def writer_threads() -> int:
    return sum("sqlite-writer" in thread.name for thread in threading.enumerate())


async def test_large_arguments_are_stored_with_the_run(store: SQLiteStore, gate: Gate) -> None:
    arguments = f'"{"x" * LARGE_BYTES}"'
    gate.before.clear()
    create = asyncio.create_task(store.create(info("l", arguments=arguments), LIMITS))
    await gate.until_waiting()
    (state,) = await store.load(["l"])
    assert state is not None
    assert state.info.arguments is None
    create.cancel()
    await asyncio.wait([create])
    gate.before.set()
    assert await store.create(info("l", arguments=arguments), LIMITS) == "l"
    (state,) = await store.load(["l"])
    assert state is not None
    assert state.info.arguments == arguments


async def test_only_what_is_large_is_for_the_writer(store: SQLiteStore, gate: Gate) -> None:
    for size, written in ((LARGE_BYTES, 0), (LARGE_BYTES + 1, 1)):
        run, arguments = f"of {size}", "é" * (LARGE_BYTES // 2) + "a" * (size - LARGE_BYTES)
        await store.create(info(run, arguments=arguments), LIMITS)
        assert gate.executed == written
        assert await store.append([Append(run, 0, [b"x" * size])]) == [Committed(0, 0)]
        assert gate.executed == 2 * written
        (state,) = await store.load([run])
        assert state is not None
        assert state.info.arguments == arguments
        await store.append([Append(run, 1, [b"1"], status="completed")])
        (state,) = await store.load([run])
        assert state is not None
        assert state.info.arguments is None
        assert [len(entry.frame) for entry in await store.read(run, -1, 9)] == [size, 1]


async def test_small_events_of_many_runs_are_together_large(store: SQLiteStore, gate: Gate) -> None:
    await store.create(info("s"), LIMITS)
    half = b"x" * (LARGE_BYTES // 2 + 1)
    appends = [Append("r", 1, [half]), Append("s", 0, [half])]
    assert await store.append(appends) == [Committed(1, 0), Committed(0, 0)]
    assert gate.executed == 1
    assert len(await store.read("s", -1, 9)) == 1


async def test_a_run_whose_arguments_cannot_be_stored_can_be_discarded(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> int:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    monkeypatch.setattr(Writer, "_execute", fails)
    with pytest.raises(StoreFull, match="disk is full"):
        await store.create(info("l", arguments="a" * (LARGE_BYTES + 1)), LIMITS)
    (state,) = await store.load(["l"])
    assert state is not None
    assert state.info.arguments is None, "no worker can go on with it"
    await store.discard("l")
    assert await store.load(["l"]) == [None]


async def test_arguments_of_a_run_that_was_closed_meanwhile_are_not_stored(
    store: SQLiteStore, gate: Gate
) -> None:
    gate.before.clear()
    arguments = "a" * (LARGE_BYTES + 1)
    create = asyncio.create_task(store.create(info("l", arguments=arguments), LIMITS))
    await gate.until_waiting()
    await store.close("l", COMPLETED, frees_key=False)
    gate.before.set()
    assert await create == "l"
    (state,) = await store.load(["l"])
    assert state is not None
    assert (state.status, state.info.arguments) == ("completed", None)


async def test_a_list_of_runs_has_no_arguments(store: SQLiteStore) -> None:
    await store.create(info("l", arguments="{}"), LIMITS)
    states = await store.select(Selection())
    assert {state.info.run: state.info.arguments for state in states} == {"r": None, "l": None}
