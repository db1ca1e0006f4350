"""What a store does while its file cannot be written: it waits, and loses nothing."""

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from streams import source
from streams.errors import StoreDown, StoreFull
from streams.log import Limits
from streams.log.sqlite import SQLiteStore, link
from streams.log.store import Append, Committed
from tests.log.shared.workers import NUMBER_19, TERMINATED, numbers, workers
from tests.support.event_logs import info
from tests.support.servers import connection, until

LIMITS = Limits(2**20, 300)


@pytest.fixture
async def store(sqlite_url: str) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), LIMITS)
    await store.append([Append("r", 0, [b"0"])])
    yield store
    await store.aclose()


@pytest.fixture
def path(sqlite_url: str) -> str:
    return sqlite_url.removeprefix("sqlite:")


async def is_refused(store: SQLiteStore, path: str) -> bool:
    """Whether the store refuses to append, without a word of its path."""
    try:
        await store.append([Append("r", 1, [b"1"])])
    except StoreDown as error:
        return os.path.basename(path) not in str(error)
    return False


async def test_a_lock_of_another_program_is_named_in_the_log_and_waited_for(
    store: SQLiteStore, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link, "BUSY_SECONDS", 0.05)
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, path]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:  # noqa: ASYNC220
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert await is_refused(store, path)
        assert await is_refused(store, path)
        assert len(await store.read("r", -1, 9)) == 1, "reading goes on"
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert f"another program holds a lock on {path}" in record.getMessage()
        if sys.platform == "linux":
            assert f"end process {other.pid} (" in record.getMessage()
        other.communicate()
    assert await store.append([Append("r", 1, [b"1"])]) == [Committed(1, 0)]


async def test_operations_that_wait_for_a_lock_try_it_less_and_less_often(
    store: SQLiteStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BUSY_SECONDS", 1)
    attempts = 0

    def write(db: sqlite3.Connection) -> None:
        nonlocal attempts
        attempts += 1
        db.execute("BEGIN IMMEDIATE")

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreDown):
            await store._link.do(write)
    assert 1 < attempts < 100


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_file_that_was_moved_away_stops_everything_until_it_is_back(
    suffix: str, store: SQLiteStore, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = f"{path}.moved"
    os.rename(path + suffix, other)
    await until_refused(store, path)
    with pytest.raises(StoreDown):
        await store.follow({"r": 0})
    assert f"{path}, its -wal or its -shm was deleted or replaced" in caplog.text
    os.rename(other, path + suffix)
    assert await store.append([Append("r", 1, [b"1"])]) == [Committed(1, 0)]
    assert [entry.frame for entry in await store.read("r", -1, 9)] == [b"0", b"1"]


async def until_refused(store: SQLiteStore, path: str) -> None:
    async with asyncio.timeout(5):
        while not await is_refused(store, path):
            await asyncio.sleep(0.01)


async def test_a_file_that_was_replaced_is_not_written(
    store: SQLiteStore, path: str, tmp_path: Path
) -> None:
    os.rename(path, f"{path}.old")
    SQLiteStore(f"sqlite:{tmp_path}/new.db").check()
    shutil.copyfile(tmp_path / "new.db", path)
    before = content(path)
    await until_refused(store, path)
    await store.aclose()
    assert content(path) == before


def content(path: str) -> bytes:
    return Path(path).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_what_a_deleted_write_ahead_log_held_is_saved(
    store: SQLiteStore, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 50):
        await store.append([Append("r", number, [b"x" * 100])])
    await until(lambda: opened_by_this_process(f"{path}-wal") == 2, "the keeper has it open")
    os.unlink(f"{path}-wal")
    await until_refused(store, path)
    assert f"{path}, its -wal or its -shm was deleted" in caplog.text
    rows: list[int] = []

    def is_saved() -> bool:
        # A copy, made by another process: this one would drop the locks of the store.
        subprocess.run(["cp", path, tmp_path / "copy.db"], check=True)
        with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
            tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'batch'")
            if tables.fetchone()[0]:
                rows[:] = [row for (row,) in db.execute("SELECT last FROM batch ORDER BY last")]
        return len(rows) >= 50

    await until(is_saved, "the keeper has saved all events", 20)
    assert rows[:50] == list(range(50))


def opened_by_this_process(path: str) -> int:
    descriptors = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return sum(fd.is_symlink() and os.readlink(fd) == path for fd in descriptors)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, half of which is filled by `filler`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    command = [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this system mounts no tmpfs")
    try:
        (folder / "filler").write_bytes(bytes(2**20))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def append_until_full(store: SQLiteStore) -> None:
    for number in range(1000):
        outcomes = await store.append([Append("r", number, [b"x" * 10_000])])
        assert outcomes == [Committed(number, 0)]


async def create_until_full(store: SQLiteStore) -> None:
    for number in range(1000):
        await store.create(info(f"other-{number}"), LIMITS)


async def test_on_a_full_disk_runs_wait_new_ones_are_refused_and_nothing_is_lost(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_disk / "runs.db"
    store = SQLiteStore(f"sqlite:{path}")
    await store.open("one")
    await store.create(info(), LIMITS)
    with pytest.raises(StoreFull) as full:
        await append_until_full(store)
    number = len(await store.read("r", -1, 10_000))
    assert not isinstance(full.value, StoreDown)
    assert "runs.db" not in str(full.value)
    assert f"the disk of {path} is full: make room" in caplog.text
    with pytest.raises(StoreFull):
        await create_until_full(store)
    with pytest.raises(StoreFull):
        await store.append([Append("r", number, [b"x" * 10_000])])
    assert len(await store.read("r", -1, 10_000)) == number, "reading goes on"
    os.unlink(small_disk / "filler")
    assert await store.append([Append("r", number, [b"x" * 10_000])]) == [Committed(number, 0)]
    await store.create(info("new"), LIMITS)
    assert len(await store.read("r", -1, 10_000)) == number + 1
    await store.aclose()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def fill(file: Path) -> None:
    """Writes until the disk is full."""
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass


async def test_on_a_full_disk_viewers_wait_and_new_runs_get_a_503(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()
    produced = 0

    @source
    async def steady() -> AsyncIterator[dict[str, int]]:
        nonlocal produced
        while not over.is_set():
            yield {"number": produced}
            produced += 1
            await asyncio.sleep(0.01)

    async with (
        workers(1, f"sqlite:{small_disk}/runs.db", [steady]) as (url,),
        connection(url, "/streams/steady") as stream,
    ):
        await stream.until(*NUMBER_19)
        fill(small_disk / "filler2")
        await until(lambda: "runs.db is full" in caplog.text, "the disk is full", 20)
        async with httpx.AsyncClient(base_url=url) as client:
            refused = await client.get("/streams/steady")
        assert refused.status_code == 503
        assert "runs.db" not in refused.text
        (small_disk / "filler2").unlink()
        over.set()
        await stream.until(*TERMINATED)
    assert numbers(stream.body) == list(range(produced))


async def test_a_store_opens_when_the_disk_has_room_again(small_disk: Path) -> None:
    (small_disk / "filler2").write_bytes(bytes(2**20 - 4096))
    store = SQLiteStore(f"sqlite:{small_disk}/runs.db")
    with pytest.raises(StoreDown):
        await store.open("one")
    os.unlink(small_disk / "filler2")
    assert await store.create(info(), LIMITS) == "r"
    await store.aclose()


async def test_rows_that_were_deleted_by_hand_are_noticed(store: SQLiteStore, path: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM run")
    store._renewed = 0.0  # as if it was due
    await store.renew(["r"])
    news = await store.follow({})
    assert [(notice.kind, notice.run) for notice in news.notices] == [("forgotten", "r")]
