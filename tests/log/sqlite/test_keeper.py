"""What the keeper does: checkpoints, expiry, and a file that does not grow without end."""

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from streams.errors import StoreDown
from streams.event import COMPLETED
from streams.log import Limits
from streams.log.sqlite import SQLiteStore, keeper
from streams.log.sqlite.database import Database
from streams.log.store import Append, Committed, Cursor
from tests.log.sqlite.writers import event, writers
from tests.support.event_logs import info
from tests.support.servers import until
from tests.support.stores import remains


@pytest.fixture
async def store(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SQLiteStore]:
    """A store whose keeper is in a hurry."""
    monkeypatch.setattr(keeper, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(keeper, "EXPIRY_SECONDS", 0.01)
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    yield store
    await store.aclose()


def size(path: str) -> int:
    return os.stat(path).st_size


def pages(path: str) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA page_count").fetchone()[0])


async def test_the_write_ahead_log_is_emptied_when_it_is_long(
    store: SQLiteStore, sqlite_url: str
) -> None:
    path = sqlite_url.removeprefix("sqlite:")
    await store.create(info(), Limits(2**20, 300))
    for number in range(30):
        await store.append([Append("r", number, [b"x" * 100_000])])
    await until(lambda: size(f"{path}-wal") < keeper.WAL_BYTES, "the log is short", 20)
    assert size(path) > 2_000_000
    assert len(await store.read("r", -1, 100)) == 30


async def test_only_the_keeper_moves_the_write_ahead_log(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:")
    locks = Database(sqlite_url).locks
    assert locks.acquire("keeper"), "no keeper works"
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), Limits(2**20, 300))
    before = size(path)
    for number in range(50):
        await store.append([Append("r", number, [b"x" * 100_000])])
    assert size(path) == before
    assert size(f"{path}-wal") > 5_000_000
    locks.release_all()
    await until(lambda: size(f"{path}-wal") < keeper.WAL_BYTES, "the log is short", 20)
    await store.aclose()


async def test_the_write_ahead_log_starts_over_under_four_writers(
    sqlite_url: str, tmp_path: Path
) -> None:
    wal = f"{sqlite_url.removeprefix('sqlite:')}-wal"
    sizes = [0]

    def has_shrunk(times: int) -> bool:
        if (now := size(wal)) != sizes[-1]:
            sizes.append(now)
        return sum(after < before for before, after in pairwise(sizes)) >= times

    with writers(sqlite_url, tmp_path, "a", "b", "c", "d", interval=0) as started:
        await until(lambda: os.path.exists(wal), "the file is open", 20)
        await until(lambda: has_shrunk(3), "the log was emptied three times", 50)
        for writer in started:
            await writer.until_acknowledged(writer.acknowledged + 1)
    # How long it was meanwhile says only how fast the machine is.
    store = SQLiteStore(sqlite_url)
    await store.open("last")
    await until(lambda: size(wal) < keeper.WAL_BYTES, "the log is short", 20)
    await store.aclose()


async def test_no_operation_leaves_a_snapshot_open(store: SQLiteStore, sqlite_url: str) -> None:
    cursor = Cursor("r", "one", 0, 1)
    operations: list[Callable[[], Awaitable[object]]] = [
        lambda: store.create(info(), Limits(2**20, 300)),
        lambda: store.append([Append("r", 0, [b"0", b"1"])]),
        lambda: store.append([Append("r", 7, [b"7"])]),
        lambda: store.load(["r", "unknown"]),
        lambda: store.read("r", -1, 1),
        lambda: store.set_cursors([cursor]),
        lambda: store.follow({"r": -1}),
        lambda: store.renew(["r"]),
        lambda: store.runs_of("one"),
        lambda: store.claim("r", "one"),
        lambda: store.remove_worker("one"),
        lambda: store.close("r", COMPLETED, frees_key=False),
        lambda: store.discard("r"),
        lambda: store.leave(),
    ]
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"), isolation_level=None)) as db:
        for operation in operations:
            await operation()
            db.execute("UPDATE generation SET number = number")
            (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert not busy, operation


async def test_nothing_remains_of_runs_whose_time_is_over_or_that_were_discarded(
    store: SQLiteStore, sqlite_url: str
) -> None:
    await store.create(info("kept"), Limits(2**20, 300))
    for run in ("finished", "discarded"):
        await store.create(info(run), Limits(2**20, 0.01))
        for number in range(1500):  # More than one transaction deletes.
            await store.append([Append(run, number, [b"x"])])
    await store.append([Append("finished", 1500, [b"end"], status="completed")])
    await store.discard("discarded")
    await until(lambda: remains(sqlite_url) == [("run", "kept")], "nothing remains", 20)


async def test_the_file_stays_small_while_runs_come_and_go(
    store: SQLiteStore, sqlite_url: str
) -> None:
    path = sqlite_url.removeprefix("sqlite:")
    largest = 0
    for number in range(2000):
        run = f"run-{number}"
        await store.create(info(run), Limits(2**20, 0.01))
        frames = [b"x" * 200] * 50
        await store.append([Append(run, 0, frames, status="completed")])
        largest = max(largest, size(path) + size(f"{path}-wal"))
        if number % 20 == 0:
            # No more runs come before the keeper has deleted most of these.
            await until(lambda: len(remains(sqlite_url)) < 200, "old runs are deleted", 20)
    await until(lambda: not remains(sqlite_url), "nothing remains", 20)
    written = 2000 * 50 * 200
    assert largest < written / 2, "much more was written than the file ever had"
    await until(lambda: pages(path) < 100, "free pages are given back", 20)
    await until(lambda: size(f"{path}-wal") < keeper.WAL_BYTES, "the log is short", 20)


async def test_a_keeper_that_was_held_up_catches_up(sqlite_url: str) -> None:
    path = sqlite_url.removeprefix("sqlite:")
    locks = Database(sqlite_url).locks
    assert locks.acquire("keeper"), "no keeper works"
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    for number in range(500):
        await store.create(info(f"run-{number}"), Limits(2**20, 0.01))
        await store.append([Append(f"run-{number}", 0, [b"x" * 9000] * 2, status="completed")])
    assert len(remains(sqlite_url)) == 1000
    locks.release_all()
    await until(lambda: not remains(sqlite_url), "nothing remains", 20)
    await until(lambda: pages(path) < 100, "free pages are given back", 20)
    await until(lambda: size(f"{path}-wal") < keeper.WAL_BYTES, "the log is short", 20)
    await store.aclose()
    assert size(path) < 1_000_000


async def test_unfinished_runs_that_nobody_has_claimed_for_a_day_go(
    store: SQLiteStore, sqlite_url: str
) -> None:
    dead, alive = SQLiteStore(sqlite_url), SQLiteStore(sqlite_url)
    await dead.open("dead")
    await alive.open("alive")
    await dead.create(info("orphan"), Limits(2**20, 300))
    await alive.create(info("produced"), Limits(2**20, 300))
    await dead.aclose()
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"))) as db, db:
        yesterday = time.time() - keeper.ORPHAN_SECONDS - 1
        db.execute("UPDATE worker SET seen = ? WHERE name != 'one'", (yesterday,))
    await until(lambda: remains(sqlite_url) == [("run", "produced")], "the orphan is gone", 20)
    assert (await store.renew([])).all == {"one", "alive"}
    await alive.aclose()


async def test_a_keeper_that_slept_for_a_day_keeps_the_runs_of_its_own_worker(
    store: SQLiteStore, sqlite_url: str
) -> None:
    orphan = SQLiteStore(sqlite_url)
    await orphan.open("dead")
    await orphan.create(info("orphan"), Limits(2**20, 300))
    await orphan.aclose()
    await store.create(info("produced"), Limits(2**20, 300))
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"))) as db, db:
        db.execute("UPDATE worker SET seen = ?", (time.time() - keeper.ORPHAN_SECONDS - 1,))
    await until(lambda: remains(sqlite_url) == [("run", "produced")], "the orphan is gone", 20)
    assert (await store.append([Append("produced", 0, [b"x"])])) == [Committed(0, 0)]


async def test_another_worker_becomes_the_keeper_when_the_keeper_is_killed(
    store: SQLiteStore, sqlite_url: str, tmp_path: Path
) -> None:
    await store.aclose()
    with writers(sqlite_url, tmp_path, "keeper") as (writer,):
        await writer.until_acknowledged(5)
        locks = store._database.locks
        await until(lambda: not locks.is_free("keeper"), "the writer is the keeper")
        await store.open("one")
        writer.kill()
        await until(lambda: not locks.is_free("keeper"), "this process is the keeper")
    await store.create(info("gone"), Limits(2**20, 0.01))
    await store.append([Append("gone", 0, [b"end"], status="completed")])
    await until(lambda: ("run", "gone") not in remains(sqlite_url), "the run is deleted", 20)


async def test_a_backup_that_is_taken_under_load_is_whole(sqlite_url: str, tmp_path: Path) -> None:
    path = sqlite_url.removeprefix("sqlite:")

    def back_up(name: str) -> None:
        with closing(sqlite3.connect(path)) as source:
            with closing(sqlite3.connect(tmp_path / name)) as target:
                source.backup(target)

    with writers(sqlite_url, tmp_path, "a", "b", "c") as started:
        for number in range(3):
            for writer in started:
                await writer.until_acknowledged(100 * (number + 1))
            acknowledged = {writer: writer.acknowledged for writer in started}
            await asyncio.to_thread(back_up, f"{number}.db")
            backup = SQLiteStore(f"sqlite:{tmp_path}/{number}.db")
            await backup.open("reader")
            for writer, last in acknowledged.items():
                for run in writer.runs:
                    entries = await backup.read(run, -1, 10**6)
                    assert len(entries) > last, "what was acknowledged before the backup is in it"
                    assert [entry.frame for entry in entries] == [
                        event(run, n, writer.worker) for n in range(len(entries))
                    ]
            await backup.aclose()
            with closing(sqlite3.connect(tmp_path / f"{number}.db")) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_keeper_does_not_open_a_file_that_replaced_the_first(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite would move the write-ahead log of the first into it."""
    path = sqlite_url.removeprefix("sqlite:")
    monkeypatch.setattr(keeper, "TICK_SECONDS", 10**6)
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    os.rename(path, f"{path}.old")
    shutil.copyfile(f"{path}.old", path)
    with pytest.raises(StoreDown, match="was deleted or replaced"):
        store._database.connect()
    await store.aclose()
