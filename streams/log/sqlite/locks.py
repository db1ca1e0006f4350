"""Locks: files in a folder beside the database, locked by processes that live. And Deaths.

The kernel releases a lock when its process ends, however it ends. So a lock that another process
can get is a proof of death, which no slow machine can fake.

Invariants:

1. A lock file is deleted only by a process that holds its lock, or has found it free.
2. A forked child holds no lock of its parent: else a killed parent would seem to live.
"""

import fcntl
import os
import sqlite3
import time
from contextlib import suppress
from typing import Literal
from weakref import WeakSet

Verdict = Literal["alive", "dead", "certainly dead"]

_all: "WeakSet[Locks]" = WeakSet()


class Locks:
    """The locks in `folder` that this process holds."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._held: dict[str, int] = {}
        _all.add(self)

    def acquire(self, name: str) -> bool:
        """Takes a lock, and makes its file if needed. Returns False if it is taken."""
        with suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        while name not in self._held:
            file = os.open(self._path(name), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another process may have deleted the file before it was locked.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file), os.stat(self._path(name))):
                        self._held[name] = file
                        return True
            except BlockingIOError:
                return False
            finally:
                if name not in self._held:
                    os.close(file)
        return True

    def holds(self, name: str) -> bool:
        return name in self._held

    def is_free(self, name: str) -> bool:
        """Whether the lock has a file and no process holds it."""
        try:
            file = os.open(self._path(name), os.O_RDWR)
        except OSError:
            return False
        try:
            # Shared, so that processes which look at the same moment do not mislead each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    def release(self, name: str) -> None:
        os.close(self._held.pop(name))

    def delete(self, name: str) -> None:
        """Deletes the file of a lock that is free or held here."""
        with suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def release_all(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


def _after_fork() -> None:
    for locks in _all:
        locks.release_all()


os.register_at_fork(after_in_child=_after_fork)


class Deaths:
    """Tells dead workers from living ones, as one worker sees them.

    A death is certain when the kernel has released the worker's lock, or the worker has left. A
    worker that holds its lock but has renewed nothing for the whole `lease` is stopped, and counts
    as dead. No clock is compared with that of another worker, or of an earlier boot.
    """

    def __init__(self, locks: Locks, lease: float) -> None:
        self._locks = locks
        self._lease = lease
        self._beats: dict[str, tuple[int, float]] = {}

    def verdicts(self, db: sqlite3.Connection, app: str) -> dict[str, Verdict]:
        """The verdict on each worker of an app."""
        query = "SELECT name, beat, has_left FROM worker WHERE app = ?"
        rows = db.execute(query, (app,)).fetchall()
        self._beats = {name: self._beats[name] for name, *_ in rows if name in self._beats}
        return {row[0]: self._judge(*row) for row in rows}

    def _judge(self, worker: str, beat: int, has_left: int) -> Verdict:
        if has_left or self._locks.is_free(worker):
            return "certainly dead"
        now = time.monotonic()
        if worker not in self._beats or self._beats[worker][0] != beat:
            self._beats[worker] = (beat, now)
        return "dead" if now - self._beats[worker][1] >= self._lease else "alive"
