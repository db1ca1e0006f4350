"""Writer: stores large values, which takes milliseconds that the event loop does not have.

It is a thread with a connection of its own. It executes single statements, so that it holds the
lock of the file only inside SQLite, and not while it waits for the interpreter.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from streams.log.sqlite.database import Database, patiently

LARGE_BYTES = 512 * 1024
"""Statements with more than this are for the writer. With less, they take some 2 ms at most."""

BUSY_SECONDS = 5.0
"""A statement that finds the file locked for longer has failed. The caller repeats it."""


class Writer:
    """The writer of one worker. Its thread begins, and opens the file, with the first statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._executor = ThreadPoolExecutor(1, "streams-sqlite-writer")
        self._db: sqlite3.Connection | None = None

    async def execute(self, statement: str, values: Sequence[object]) -> int:
        """Executes a statement that changes rows, and returns how many.

        It goes on if the task that waits for it is cancelled. Raises sqlite3.Error or
        StoreDown.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._execute, statement, values)

    def _execute(self, statement: str, values: Sequence[object]) -> int:
        if self._db is None:
            self._db = self._database.connect(cached_statements=0)
        db = self._db
        self._database.check_files()
        return patiently(lambda: db.execute(statement, values), BUSY_SECONDS).rowcount

    def close(self) -> None:
        """Waits for the statements that have begun. Blocks the thread."""
        self._executor.shutdown()
        if self._db is not None:
            self._db.close()
