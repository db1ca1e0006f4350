"""SQLiteStore: runs in a file, for any number of workers on one machine, without a broker.

Invariants:

1. All operations run in the event loop, in transactions of microseconds; large values go to the
   writer. Nothing waits for a lock inside SQLite: an operation that finds the file locked is
   repeated, at first after a millisecond.
2. A commit of events is one statement, which compares the generation. Whoever takes a run from its
   producer raises the generation in the same transaction.
3. A worker is dead when the kernel has released its lock, or when it has not renewed its lease for
   the whole lease, counted by the clock of the worker that looks.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from streams.errors import Unavailable
from streams.event import End
from streams.log import Limits, RunInfo, Selection
from streams.log.sqlite.database import Database
from streams.log.sqlite.follower import Follower
from streams.log.sqlite.link import Link
from streams.log.sqlite.locks import Deaths
from streams.log.sqlite.produced import LargeCommit, Produced, ProducedRun
from streams.log.sqlite.rows import (
    NO_ARGUMENTS,
    close_run,
    find_by_key,
    find_run,
    find_state,
    insert_run,
    load_state,
    raise_generation,
    read_entries,
    select_runs,
)
from streams.log.sqlite.topics import keep, publish
from streams.log.sqlite.writer import LARGE_BYTES
from streams.log.store import (
    Append,
    Cursor,
    Entry,
    News,
    Outcome,
    Publication,
    Published,
    State,
    Workers,
)

logger = logging.getLogger("streams")

LOOK_SECONDS = 0.004
"""The pause between two looks for news while a run is followed, or shortly after a notice."""

IDLE_LOOK_SECONDS = 0.05

NOTICE_SECONDS = 1.0
"""After a notice, another one is likely for this long: a reader elsewhere moves its cursor."""

RENEWALS_PER_LEASE = 3


class SQLiteStore:
    """A Store in a SQLite file: sqlite:runs.db, or sqlite:/absolute/path/runs.db.

    The URL has three parameters: `prefix` separates apps that share the file, `lease` is the
    number of seconds after which a worker that is stopped counts as dead (default: 10), and
    `synchronous=full` makes commits survive a power cut. Raises ValueError for an invalid URL.
    """

    renew_interval = 0.25
    append_interval = 0.004
    _produced: Produced
    _follower: Follower

    def __init__(self, url: str) -> None:
        database = Database(url)
        self._database = database
        self._app = database.prefix
        self._link = Link(database)
        self._deaths = Deaths(database.locks, database.lease)
        self._worker = ""
        self._renewed = 0.0
        self._noticed = 0.0
        self._woken = False
        self._wait: asyncio.Future[None] | None = None

    def check(self) -> None:
        self._database.open().close()
        logger.debug("the log is in SQLite %s", sqlite3.sqlite_version)

    async def open(self, worker: str) -> None:
        self._worker = worker
        self._produced = Produced(self._app, worker)
        self._follower = Follower(self._app, worker)
        self._renewed = time.monotonic()
        await self._link.open(worker)

    async def leave(self) -> None:
        def leave(db: sqlite3.Connection) -> bool:
            db.execute("BEGIN IMMEDIATE")
            if _runs_of(db, self._worker):
                db.execute("UPDATE worker SET has_left = 1 WHERE name = ?", (self._worker,))
                return False
            db.execute("DELETE FROM worker WHERE name = ?", (self._worker,))
            return True

        if await self._link.do(leave):
            self._database.locks.delete(self._worker)

    async def aclose(self) -> None:
        await self._link.aclose()

    # Runs.

    async def create(self, info: RunInfo, limits: Limits) -> str:
        is_large = len((info.arguments or "").encode()) > LARGE_BYTES
        stored = info.without_arguments() if is_large else info

        def create(db: sqlite3.Connection) -> tuple[str, int]:
            db.execute("BEGIN IMMEDIATE")
            if (number := find_run(db, self._app, info.run)) is not None:
                return info.run, number  # The caller repeats the operation.
            key = info.unique_key
            if key is not None and (other := find_by_key(db, self._app, key)) is not None:
                return other, 0
            return info.run, insert_run(db, self._app, self._worker, stored, limits)

        run, number = await self._link.do(create)
        if number:
            self._produced.runs[run] = ProducedRun(number, -1, 0)
            if is_large:  # Without arguments, nobody can go on with the run.
                update = "UPDATE run SET arguments = ? WHERE id = ? AND status = 'running'"
                await self._link.write(update, (info.arguments, number))
        return run

    async def find_by_key(self, unique_key: str) -> str | None:
        return await self._link.do(lambda db: find_by_key(db, self._app, unique_key))

    async def select(self, selection: Selection) -> list[State]:
        def select(db: sqlite3.Connection) -> list[State]:
            db.execute("BEGIN")  # The runs are those of one moment.
            states = [
                find_state(db, self._app, run, NO_ARGUMENTS)
                for run in select_runs(db, self._app, selection)
            ]
            return [state for state in states if state is not None]

        return await self._link.do(select)

    async def load(self, runs: Sequence[str]) -> list[State | None]:
        return await self._link.do(lambda db: [find_state(db, self._app, run) for run in runs])

    async def read(self, run: str, after: int, count: int) -> list[Entry]:
        def read(db: sqlite3.Connection) -> list[Entry]:
            number = find_run(db, self._app, run)
            return [] if number is None else read_entries(db, number, after, count)

        return await self._link.do(read)

    async def publish(self, publication: Publication) -> Published:
        # An operation that fails has changed nothing, so it can be repeated.
        published = await self._link.do(lambda db: publish(db, self._app, publication))
        self._follower.is_due(published.run)
        return published

    async def close(self, run: str, end: End, *, frees_key: bool) -> bool:
        def close(db: sqlite3.Connection) -> bool:
            db.execute("BEGIN IMMEDIATE")
            return close_run(db, self._app, run, end, frees_key=frees_key)

        closed = await self._link.do(close)
        self._follower.is_due(run)
        return closed

    async def discard(self, run: str) -> None:
        def discard(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            query = "SELECT id, status FROM run WHERE app = ? AND name = ?"
            found = db.execute(query, (self._app, run)).fetchone()
            if found is None:
                return
            number, status = found
            readers = "SELECT count(*) FROM cursor WHERE run = ? AND after IS NOT NULL"
            # The writer may have a commit of it, even if this worker is its producer.
            if status == "running" or db.execute(readers, (number,)).fetchone()[0]:
                raise_generation(db)
            # The keeper deletes the rows, which may be many.
            db.execute(
                "UPDATE run SET name = NULL, expires = 0, arguments = NULL, "
                "status = CASE status WHEN 'running' THEN 'cancelled' ELSE status END "
                "WHERE id = ?",
                (number,),
            )

        await self._link.do(discard)
        self._produced.runs.pop(run, None)

    async def append(self, appends: Sequence[Append]) -> list[Outcome | Unavailable]:
        if _size(appends) > LARGE_BYTES:
            commit = await self._link.do(lambda db: self._produced.large_commit(db, appends))
            if commit is not None:
                if await self._write(commit):
                    return [*await self._after_write(appends, commit)]
                self._produced.look_again()
        return [*await self._link.do(lambda db: self._produced.append(db, appends))]

    async def _write(self, commit: LargeCommit) -> bool:
        """Returns False, and stores nothing, if the database has something else than this worker
        remembers: it has to look again."""
        with suppress(sqlite3.IntegrityError):
            return await self._link.write(commit.statement, commit.values) > 0
        return False

    async def _after_write(self, appends: Sequence[Append], commit: LargeCommit) -> list[Outcome]:
        self._produced.on_large_commit(appends, commit)
        with suppress(Unavailable):  # The events are committed. The next append tries again.
            return await self._link.do(
                lambda db: self._produced.after_large_commit(db, appends, commit)
            )
        return commit.outcomes

    # News.

    async def follow(self, after: Mapping[str, int]) -> News:
        self._follower.follow(after)
        while True:
            news = await self._link.do(self._look)
            if news.notices:
                self._noticed = time.monotonic()
            if news.entries or news.notices or self._woken:
                self._woken = False
                return news
            soon = after or time.monotonic() < self._noticed + NOTICE_SECONDS
            await self._pause(LOOK_SECONDS if soon else IDLE_LOOK_SECONDS)

    def _look(self, db: sqlite3.Connection) -> News:
        news = self._follower.look(db)
        self._produced.find(db, self._follower.generation)
        notices, self._produced.notices = self._produced.notices, []
        return News(news.entries, news.notices + notices)

    async def _pause(self, seconds: float) -> None:
        """Waits for so long, or until `_end_pause` is called."""
        loop = asyncio.get_running_loop()
        self._wait = loop.create_future()
        timer = loop.call_later(seconds, self._end_pause)
        try:
            await self._wait
        finally:
            timer.cancel()
            self._wait = None

    def _end_pause(self) -> None:
        if self._wait is not None and not self._wait.done():
            self._wait.set_result(None)

    async def set_cursors(self, cursors: Sequence[Cursor]) -> list[bool]:
        def set_cursors(db: sqlite3.Connection) -> list[bool]:
            db.execute("BEGIN IMMEDIATE")
            for cursor in cursors:
                db.execute(
                    "INSERT OR REPLACE INTO cursor (run, worker, after, readers) "
                    "SELECT id, ?, ?, ? FROM run "
                    "WHERE app = ? AND name = ? AND status = 'running'",
                    (cursor.worker, cursor.after, cursor.readers, self._app, cursor.run),
                )
                if cursor.keep is not None:
                    keep(db, self._app, cursor.run, cursor.keep)
            return [find_run(db, self._app, cursor.run) is not None for cursor in cursors]

        exist = await self._link.do(set_cursors)
        self._woken = True
        self._end_pause()
        return exist

    # Workers.

    async def renew(self, runs: Collection[str]) -> Workers:
        had_lease, lease = True, self._database.lease
        if (elapsed := time.monotonic() - self._renewed) >= lease / RENEWALS_PER_LEASE:
            had_lease = await self._link.do(self._renew) and elapsed < lease
            self._renewed = time.monotonic()
        verdicts = await self._link.do(lambda db: self._deaths.verdicts(db, self._app))
        dead = {worker for worker, verdict in verdicts.items() if verdict != "alive"}
        certain = {worker for worker in dead if verdicts[worker] == "certainly dead"}
        return Workers(had_lease, dead, certain, set(verdicts))

    def _renew(self, db: sqlite3.Connection) -> bool:
        """Renews the lease. Returns whether the others still knew this worker."""
        self._produced.check(db)
        values = (time.time(), self._worker)
        update = "UPDATE worker SET beat = beat + 1, seen = ? WHERE name = ?"
        if db.execute(update, values).rowcount:
            return True
        insert = "INSERT INTO worker (seen, name, app) VALUES (?, ?, ?)"
        db.execute(insert, (*values, self._app))
        return False

    async def runs_of(self, worker: str) -> list[str]:
        return await self._link.do(lambda db: _runs_of(db, worker))

    async def claim(self, run: str, worker: str) -> State | None:
        def claim(db: sqlite3.Connection) -> State | None:
            db.execute("BEGIN IMMEDIATE")
            state = load_state(db, self._app, run)
            if state is None or state.status != "running":
                return None
            if state.producer == self._worker:
                return state
            verdict = self._deaths.verdicts(db, self._app).get(worker)
            if state.producer != worker or verdict == "alive":
                return None
            number = find_run(db, self._app, run)
            db.execute("UPDATE run SET producer = ? WHERE id = ?", (self._worker, number))
            db.execute(
                "DELETE FROM cursor WHERE run = ? AND worker IN (?, ?)",
                (number, self._worker, worker),
            )
            raise_generation(db)
            return load_state(db, self._app, run)

        return await self._link.do(claim)

    async def remove_worker(self, worker: str) -> None:
        def remove(db: sqlite3.Connection) -> bool:
            db.execute("BEGIN IMMEDIATE")
            verdict = self._deaths.verdicts(db, self._app).get(worker, "alive")
            if verdict == "alive" or _runs_of(db, worker):
                return False
            db.execute("DELETE FROM worker WHERE name = ?", (worker,))
            return True

        if await self._link.do(remove) and self._database.locks.is_free(worker):
            self._database.locks.delete(worker)


def _size(appends: Sequence[Append]) -> int:
    size = 0
    for append in appends:  # A third of what it takes with sum().
        for frame in append.frames:
            size += len(frame)
    return size


def _runs_of(db: sqlite3.Connection, worker: str) -> list[str]:
    query = "SELECT name FROM run WHERE producer = ? AND status = 'running'"
    return [name for (name,) in db.execute(query, (worker,)).fetchall()]
