"""Processes that are killed or stopped while they write to one file."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest

from streams.log.sqlite import SQLiteStore
from streams.log.sqlite.writer import LARGE_BYTES
from streams.log.store import Append, Committed
from tests.log.shared.workers import until_async
from tests.log.sqlite.writers import Writer, event, writers
from tests.support.servers import until
from tests.support.stores import with_lease


@asynccontextmanager
async def opened(url: str, worker: str = "survivor") -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(url)
    await store.open(worker)
    try:
        yield store
    finally:
        await store.aclose()


async def frames_of(store: SQLiteStore, run: str) -> list[bytes]:
    entries = await store.read(run, -1, 10**6)
    assert [entry.number for entry in entries] == list(range(len(entries))), "no hole, none twice"
    return [entry.frame for entry in entries]


async def check_everything_is_there(store: SQLiteStore, writer: Writer) -> None:
    for run in writer.runs:
        frames = await frames_of(store, run)
        assert len(frames) > writer.acknowledged, "everything acknowledged is there"
        assert frames == [event(run, number, writer.worker) for number in range(len(frames))]


def check_integrity(url: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:").partition("?")[0])) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_when_all_writers_are_killed_at_once_everything_acknowledged_is_there(
    sqlite_url: str, tmp_path: Path
) -> None:
    for attempt in range(int(os.environ.get("KILLS", "4"))):
        names = [f"{attempt}-{number}" for number in range(4)]
        with writers(sqlite_url, tmp_path, *names) as started:
            for writer in started:
                await writer.until_acknowledged(100)
        async with opened(sqlite_url) as store:
            for writer in started:
                await check_everything_is_there(store, writer)
            workers = await store.renew([])
            assert set(names) <= workers.certain, "their deaths are known at once"
    check_integrity(sqlite_url)


async def test_a_killed_worker_is_dead_for_certain_long_before_its_lease_expires(
    sqlite_url: str, tmp_path: Path
) -> None:
    url = with_lease(sqlite_url, 3600)
    with writers(url, tmp_path, "one", "other") as (one, other):
        async with opened(url) as store:
            await one.until_acknowledged(5)
            await other.until_acknowledged(5)
            assert (await store.renew([])).dead == set()
            one.kill()
            assert (await store.renew([])).certain == {"one"}
            for run in one.runs:
                assert await store.claim(run, "one") is not None
            assert await store.claim(other.runs[0], "other") is None
            await store.remove_worker("one")
            assert (await store.renew([])).all == {"other", "survivor"}
            await check_everything_is_there(store, one)
            await other.until_acknowledged(other.acknowledged + 5)
    assert sorted(os.listdir(tmp_path / "runs.db-locks")) == [
        *("keeper", "opening", "other", "survivor")
    ]


async def test_a_stopped_writer_is_fenced_when_it_continues_after_its_lease(
    sqlite_url: str, tmp_path: Path
) -> None:
    url = with_lease(sqlite_url, 0.3)
    async with opened(url) as store:
        for attempt in range(5):
            with writers(url, tmp_path, f"w{attempt}") as (writer,):
                await writer.until_acknowledged(20 + 7 * attempt)
                await writer.pause_between_commits()
                is_dead = partial(found_dead, store, writer.worker)
                await until_async(is_dead, f"{writer.worker} is found dead", 20)
                for run in writer.runs:
                    state = await store.claim(run, writer.worker)
                    assert state is not None
                    mine = [event(run, state.last + 1, "survivor")]
                    appended = await store.append([Append(run, state.last + 1, mine)])
                    assert appended == [Committed(state.last + 1, 0)]
                writer.resume()
                await until(lambda w=writer: w.fenced, "the old producer is fenced", 20)  # type: ignore[misc]
                for run in writer.runs:
                    frames = await frames_of(store, run)
                    old = [event(run, n, writer.worker) for n in range(len(frames) - 1)]
                    assert frames == [*old, event(run, len(frames) - 1, "survivor")]
                    assert len(old) > writer.acknowledged
                await store.remove_worker(writer.worker)
    check_integrity(url)


async def found_dead(store: SQLiteStore, worker: str) -> bool:
    await until_renewed(store)
    return worker in (await store.renew([])).dead


async def until_renewed(store: SQLiteStore) -> None:
    """Lets as much time pass as a log does between two renewals."""
    await asyncio.sleep(store.renew_interval / 5)


async def test_a_worker_that_is_stopped_for_less_than_its_lease_keeps_its_runs(
    sqlite_url: str, tmp_path: Path
) -> None:
    with writers(sqlite_url, tmp_path, "one") as (one,):
        async with opened(sqlite_url) as store:
            await one.until_acknowledged(20)
            await one.pause_between_commits()
            for _ in range(5):
                assert (await store.renew([])).dead == set()
                assert await store.claim(one.runs[0], "one") is None
            one.resume()
            await one.until_acknowledged(one.acknowledged + 20)


async def test_no_death_rests_on_a_clock(sqlite_url: str) -> None:
    """The wall clock can be set, and the monotonic clock starts again when the machine does."""
    async with opened(sqlite_url, "one"), opened(sqlite_url) as store:
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"))) as db:
            for seen in (0, 10**12):
                with db:
                    db.execute("UPDATE worker SET seen = ?", (seen,))
                assert (await store.renew([])).dead == set()


FORKS_A_CHILD = """
import asyncio, os, sys, time
from streams.log.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1])
asyncio.run(store.open("parent"))
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    os.read(read, 1)  # returns when the parent is dead
    print("parent is dead", flush=True)
    sys.stdin.read()  # returns when the test is over
    os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""


async def test_a_forked_child_does_not_keep_its_killed_parent_alive(sqlite_url: str) -> None:
    url = with_lease(sqlite_url, 3600)
    command = [sys.executable, "-c", FORKS_A_CHILD, url]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        async with opened(url) as store:
            assert (await store.renew([])).dead == set()
            process.send_signal(signal.SIGKILL)
            assert process.stdout.readline() == "parent is dead\n"
            assert (await store.renew([])).certain == {"parent"}


FORKS_WITH_AN_OPEN_STORE = """
import asyncio, os, sys
from streams.log import Limits
from streams.log.sqlite import SQLiteStore
from streams.log.sqlite.writer import LARGE_BYTES
from streams.log.store import Append, Committed
from tests.log.sqlite.writers import event
from tests.support.event_logs import info

store, size = SQLiteStore(sys.argv[1]), int(sys.argv[2])

async def write(worker, count):
    await store.open(worker)
    await store.create(info(worker), Limits(2**20, 300))
    for number in range(count):
        append = Append(worker, number, [event(worker, number, worker) + b"x" * size])
        assert await store.append([append]) == [Committed(number, 0)]

asyncio.run(write("parent", 10))
child = os.fork()
if child == 0:
    asyncio.run(write("child", 10))
    asyncio.run(store.aclose())
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0

async def go_on():
    append = Append("parent", 10, [event("parent", 10, "parent")])
    assert await store.append([append]) == [Committed(10, 0)]
    assert len(await store.read("child", -1, 100)) == 10, "the parent sees the child's commits"
    await store.aclose()

asyncio.run(go_on())
"""


@pytest.mark.parametrize("size", [0, LARGE_BYTES])
async def test_a_forked_child_opens_connections_of_its_own(sqlite_url: str, size: int) -> None:
    command = [sys.executable, "-c", FORKS_WITH_AN_OPEN_STORE, sqlite_url, str(size)]
    subprocess.run(command, check=True, timeout=50)  # noqa: ASYNC221
    async with opened(sqlite_url) as store:
        assert len(await frames_of(store, "child")) == 10
        assert len(await frames_of(store, "parent")) == 11
    check_integrity(sqlite_url)


async def test_two_workers_of_one_name_are_refused(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(sqlite_url, "one"):
        with pytest.raises(Exception, match="cannot be used now"):
            await SQLiteStore(sqlite_url).open("one")
    assert "worker one has" in caplog.text


OPENS_AND_CLOSES = """
import sys
from streams.log.sqlite import SQLiteStore

for _ in range(25):
    SQLiteStore(sys.argv[1]).check()
"""


def test_processes_that_open_and_close_the_file_at_the_same_time_wait_for_each_other(
    sqlite_url: str,
) -> None:
    """As workers do that start together. The last one to close takes the file for itself."""
    command = [sys.executable, "-c", OPENS_AND_CLOSES, sqlite_url]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(50) for process in processes] == [0] * 4
    check_integrity(sqlite_url)
