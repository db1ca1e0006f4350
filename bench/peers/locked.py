"""stamped, and it measures for how long this worker locks the database of a SQLite log.

GET /locked reports, in JSON, what has happened since the gate was opened: the number of commits and
their CPU time under the lock, and the number of checkpoints and their time. Only one worker on a
file can commit or checkpoint at a time.
"""

import functools
import json
import sqlite3
import time
from typing import Any

locked = {"commits": 0, "commit_seconds": 0.0, "checkpoints": 0, "checkpoint_seconds": 0.0}

READS = ("SELECT", "PRAGMA")


class Connection(sqlite3.Connection):
    """A connection that adds to `locked` what its transactions and statements take."""

    _begun: float | None = None

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("BEGIN IMMEDIATE"):
            cursor = super().execute(sql, *parameters)
            self._begun = time.thread_time()
            return cursor
        if sql.startswith("PRAGMA wal_checkpoint"):
            begin = time.perf_counter()  # Not CPU time: a checkpoint waits for the disk.
            cursor = super().execute(sql, *parameters)
            locked["checkpoints"] += 1
            locked["checkpoint_seconds"] += time.perf_counter() - begin
            return cursor
        if self._begun is not None or sql.startswith(READS):
            return super().execute(sql, *parameters)
        begin = time.thread_time()
        cursor = super().execute(sql, *parameters)
        self._committed(begin)
        return cursor

    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        if self._begun is not None:
            self._committed(self._begun)
            self._begun = None

    def _committed(self, begin: float) -> None:
        locked["commits"] += 1
        locked["commit_seconds"] += time.thread_time() - begin


sqlite3.connect = functools.partial(sqlite3.connect, factory=Connection)  # type: ignore[assignment]

from bench.peers import stamped  # noqa: E402 - It opens no connection before this.


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/go":
        locked.update(dict.fromkeys(locked, 0))
    if scope["path"] != "/locked":
        await stamped.app(scope, receive, send)
        return
    body = json.dumps(locked).encode()
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})
