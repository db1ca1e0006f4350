"""Locks: files in a folder beside the database, locked by processes that live.

The kernel releases a lock when its process ends, however it ends. So a lock that another process
can get is a proof of death, which no slow machine can fake.

Invariants:

1. A lock file is deleted only by a process that has found it free.
2. A forked child holds no lock of its parent: else a killed parent would seem to live.
"""

import fcntl
import os
from contextlib import suppress
from weakref import WeakSet

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
