"""Link: the connection of one worker to the database, its lock, its keeper and its writer.

Invariants:

1. Every failure of an operation is a StoreDown or a StoreFull without the path, and the log has a
   line with the path. The operation has changed nothing then.
2. A forked child uses none of its parent's connection: its commits would vanish without an error.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from streams.errors import StoreDown, StoreFull, Unavailable
from streams.log.sqlite.database import BUSY_PAUSE, Database, errorname, is_busy, patiently
from streams.log.sqlite.keeper import Keeper
from streams.log.sqlite.writer import BUSY_SECONDS, Writer

logger = logging.getLogger("streams")

MAX_BUSY_PAUSE = 0.02
"""The pause between two attempts grows up to this: hundreds of operations may wait."""

CHECK_SECONDS = 0.05
"""The interval at which operations look whether the files are still there."""

REPORT_SECONDS = 60.0
"""The line about a failure is repeated at this interval."""

T = TypeVar("T")

_inherited: list[object] = []
"""What holds connections of the parent of this process. They are never used, nor closed."""


class Link:
    """Runs operations on the database, which it opens at the first one.

    After a failure to open it, and in a forked child, the next operation opens it again.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.worker = ""
        self._db: sqlite3.Connection | None = None
        self._pid = 0
        self._opening = asyncio.Lock()
        self._keeper: Keeper | None = None
        self._writer = Writer(database)
        self._next_check = 0.0
        self._report = ("", 0.0)

    async def open(self, worker: str) -> sqlite3.Connection:
        if worker != self.worker:  # The earlier one belongs to another event loop, and is dead.
            await self.aclose()
        self.worker = worker
        self._opening = asyncio.Lock()  # an old one may belong to another event loop
        return await self._connection()

    async def _connection(self) -> sqlite3.Connection:
        async with self._opening:
            if self._db is not None and self._pid != os.getpid():
                _inherited.extend((self._db, self._writer))
                self._db = None
            if self._db is None:
                try:
                    # In a thread: it waits for other processes, and repairs after a crash.
                    self._db = await asyncio.to_thread(self._open)
                except (StoreDown, sqlite3.Error, OSError) as error:
                    raise self.failed(error) from error
                self._pid = os.getpid()
                self._keeper = Keeper(self.database)
                self._keeper.start()
                self._writer = Writer(self.database)
            return self._db

    def _open(self) -> sqlite3.Connection:
        db = self.database.open()
        try:
            # The lock comes first: a worker with a row and a free lock is dead.
            if not self.database.locks.acquire(self.worker):
                raise StoreDown(
                    f"worker {self.worker} has {self.database.path} open in another process: give "
                    "each process a log of its own, made after the fork"
                )
            insert = "INSERT OR REPLACE INTO worker (name, app, seen) VALUES (?, ?, ?)"
            row = (self.worker, self.database.prefix, time.time())
            patiently(lambda: db.execute(insert, row), BUSY_SECONDS)
        except BaseException:
            db.close()
            raise
        return db

    async def do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Runs an operation in the event loop, and repeats it while another process writes.

        The operation may begin a transaction, which is committed or rolled back after it.
        """
        begin, pause = time.monotonic(), BUSY_PAUSE
        while True:
            db = self._db
            if db is None or self._pid != os.getpid():
                db = await self._connection()
            try:
                if begin >= self._next_check:
                    self.database.check_files()
                    self._next_check = begin + CHECK_SECONDS
                with db:
                    return operation(db)
            except (sqlite3.Error, StoreDown) as error:
                if not is_busy(error) or time.monotonic() > begin + BUSY_SECONDS:
                    raise self.failed(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_BUSY_PAUSE)

    async def write(self, statement: str, values: Sequence[object]) -> int:
        """Executes a statement with large values in a thread. Returns how many rows it changed.

        Raises sqlite3.IntegrityError.
        """
        await self._connection()
        try:
            return await self._writer.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except (sqlite3.Error, StoreDown) as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> Unavailable:
        """Logs what the operator should know. Returns the error for clients, without the path."""
        text = str(error) if isinstance(error, StoreDown) else self.database.explain(error)
        now = time.monotonic()
        if text != self._report[0] or now > self._report[1] + REPORT_SECONDS:
            self._report = (text, now)
            logger.error("%s", text)
        if errorname(error) == "SQLITE_FULL":
            return StoreFull(f"the log's disk is full; try again in {StoreFull.retry_after} s")
        return StoreDown(
            f"the log's database cannot be used now; try again in {StoreDown.retry_after} s"
        )

    async def aclose(self) -> None:
        if self._db is not None and self._pid == os.getpid():
            keeper, writer, db = self._keeper, self._writer, self._db
            self._keeper, self._db = None, None
            if keeper is not None:
                await asyncio.to_thread(keeper.stop)
            # The last one to close writes everything into the database, which takes a while.
            await asyncio.to_thread(writer.close)
            await asyncio.to_thread(db.close)
            self.database.locks.release_all()
