"""Deaths: which workers are dead, as one worker sees it."""

import sqlite3
import time

from streams.log.sqlite.database import Database


class Deaths:
    """Tells dead workers from living ones. `columns` are those of COLUMNS, of one worker's row.

    A death is certain when the kernel has released the worker's lock. A worker that holds its lock
    but has renewed nothing for the whole lease is stopped, and counts as dead. No clock is
    compared with that of another worker, or of an earlier boot.
    """

    COLUMNS = "name, beat, has_left"

    def __init__(self, database: Database) -> None:
        self._locks = database.locks
        self._lease = database.lease
        self._beats: dict[str, tuple[int, float]] = {}

    def is_certain(self, worker: str, beat: int, has_left: int) -> bool:
        """Whether a worker is dead for certain, or has left."""
        return bool(has_left) or self._locks.is_free(worker)

    def is_dead(self, worker: str, beat: int, has_left: int) -> bool:
        """Whether others may claim the runs of a worker."""
        now = time.monotonic()
        if self._beats.get(worker, (None, 0))[0] != beat:
            self._beats[worker] = (beat, now)
        expired = now - self._beats[worker][1] >= self._lease
        return expired or self.is_certain(worker, beat, has_left)

    def look(self, db: sqlite3.Connection, worker: str) -> bool | None:
        """Whether a worker is dead; None if there is no such worker."""
        query = f"SELECT {self.COLUMNS} FROM worker WHERE name = ?"
        row = db.execute(query, (worker,)).fetchone()
        return None if row is None else self.is_dead(*row)

    def forget(self, worker: str) -> None:
        self._beats.pop(worker, None)
