"""Keeper: the slow work on the file, which no worker should do in its event loop.

It moves the write-ahead log into the database, deletes what has expired, and gives free pages
back to the file system. All workers have a keeper; the one that holds the lock works. It is a
thread with a connection of its own.
"""

import logging
import os
import sqlite3
import threading
import time
from contextlib import closing

from streams.errors import StoreDown, for_log
from streams.log.sqlite.database import Database, patiently
from streams.log.sqlite.rows import raise_generation

logger = logging.getLogger("streams")

TICK_SECONDS = 0.1

WAL_BYTES = 2 * 2**20
"""A longer write-ahead log is moved into the database. All writers wait meanwhile, mostly for the
disk, so a shorter one would make them wait more often."""

BUSY_SECONDS = 0.3
"""A checkpoint waits this long for readers, such as a backup, and holds up all writers meanwhile.
It tries again only after ten times as long."""

LOCK_SECONDS = 5.0
"""A transaction waits this long for others that write."""

EXPIRY_SECONDS = 1.0

RUNS, BATCHES, PAGES = 50, 1000, 256
"""One transaction deletes or frees at most this many, so that writers wait for milliseconds."""

ORPHAN_SECONDS = 24 * 60 * 60
"""Unfinished runs of a dead worker that nobody claims for this time are deleted."""


class Keeper(threading.Thread):
    """The keeper of one worker."""

    def __init__(self, database: Database) -> None:
        super().__init__(name="streams-sqlite-keeper", daemon=True)
        self._database = database
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stops the thread, and waits for its current step."""
        self._stopping.set()
        self.join()

    def run(self) -> None:
        locks = self._database.locks
        while not self._stopping.wait(TICK_SECONDS):
            try:
                if locks.acquire("keeper"):
                    with closing(self._database.connect(BUSY_SECONDS)) as connection:
                        self._keep(connection)
                    locks.release("keeper")
            except (sqlite3.Error, OSError, StoreDown) as error:
                # The workers get the same error, and report it.
                logger.debug("the keeper of %s: %s", self._database.path, for_log(error))
                self._stopping.wait(1)

    def _keep(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA secure_delete = on")
        next_expiry = next_checkpoint = 0.0
        pause = TICK_SECONDS
        while not self._stopping.wait(pause):
            now = time.monotonic()
            if now >= next_checkpoint and self._wal_is_long() and not self._checkpoint(connection):
                next_checkpoint = time.monotonic() + 10 * BUSY_SECONDS
            if now >= next_expiry:
                more = self._expire(connection)
                next_expiry = now if more else now + EXPIRY_SECONDS
                pause = TICK_SECONDS / 50 if more else TICK_SECONDS

    def _wal_is_long(self) -> bool:
        try:
            return os.stat(self._database.wal).st_size >= WAL_BYTES
        except FileNotFoundError:
            return True  # It was deleted, but SQLite has it open. Save what it holds.

    def _checkpoint(self, connection: sqlite3.Connection) -> bool:
        """Moves the write-ahead log into the database. Returns whether it is empty now."""
        try:
            wal = os.open(self._database.wal, os.O_RDWR)
        except FileNotFoundError:
            pass
        else:
            # The checkpoint does this too, but holds up all writers meanwhile.
            try:
                os.fsync(wal)
            finally:
                os.close(wal)
        # Never PASSIVE: see the invariants in database.py. TRUNCATE becomes it when it does not get
        # the write lock in time. Whoever has just had the lock gets it most likely.
        with connection:
            self._begin(connection)
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def _begin(self, connection: sqlite3.Connection) -> None:
        patiently(lambda: connection.execute("BEGIN IMMEDIATE"), LOCK_SECONDS)

    def _expire(self, connection: sqlite3.Connection) -> bool:
        """Deletes some of what has expired. Returns whether there is more to do."""
        query = f"SELECT id FROM run WHERE expires <= ? ORDER BY expires LIMIT {RUNS}"
        if runs := [run for (run,) in connection.execute(query, (time.time(),)).fetchall()]:
            of_runs = f"IN ({','.join('?' * len(runs))})"
            some = f"SELECT id FROM batch WHERE run {of_runs} LIMIT {BATCHES}"
            with connection:
                self._begin(connection)
                deleted = connection.execute(f"DELETE FROM batch WHERE id IN ({some})", runs)
                if deleted.rowcount < BATCHES:
                    connection.execute(f"DELETE FROM cursor WHERE run {of_runs}", runs)
                    connection.execute(f"DELETE FROM run WHERE id {of_runs}", runs)
            return True
        if connection.execute("PRAGMA freelist_count").fetchone()[0]:
            # Only executescript() runs the statement to its end, which frees more than one page.
            vacuum = f"PRAGMA incremental_vacuum({PAGES})"
            patiently(lambda: connection.executescript(vacuum), LOCK_SECONDS)
            return True
        self._expire_orphans(connection)
        return False

    def _expire_orphans(self, connection: sqlite3.Connection) -> None:
        """Expires the runs of workers that died long ago, if no app has taken them over."""
        locks = self._database.locks
        query = "SELECT name FROM worker WHERE seen <= ?"
        for (worker,) in connection.execute(query, (time.time() - ORPHAN_SECONDS,)).fetchall():
            if locks.holds(worker) or not locks.acquire(worker):
                continue
            with connection:
                self._begin(connection)
                raise_generation(connection)
                connection.execute(
                    "UPDATE run SET name = NULL, status = 'cancelled', expires = 0 "
                    "WHERE producer = ? AND status = 'running'",
                    (worker,),
                )
                connection.execute("DELETE FROM worker WHERE name = ?", (worker,))
            locks.delete(worker)
            locks.release(worker)
