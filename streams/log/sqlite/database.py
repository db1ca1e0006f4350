"""Database: the file of a SQLiteStore. How it is opened, and what can be wrong with it.

Invariants:

1. Nothing in this process opens the file except SQLite: closing any other descriptor of it would
   drop all locks that SQLite holds on it here, without an error.
2. No connection checkpoints by itself: in many versions of SQLite, a checkpoint that overlaps
   the commit of another connection can lose rows. The keeper does all checkpoints.
3. Errors that are raised here are for the operator: they contain the path.
"""

import errno
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import TypeVar
from urllib.parse import parse_qsl, quote

from streams.errors import StoreDown, UnsuitablePlace
from streams.log.sqlite.locks import Locks
from streams.log.store import parse_lease

DEFAULT_LEASE = "10"

SCHEMA_VERSION = 3
APPLICATION_ID = 1400137037
_SCHEMA = (files(__package__) / "schema.sql").read_text("utf-8")

OPENING_SECONDS = 5.0
"""A process that opens the file waits this long for another one that does, or that writes."""

CACHED_STATEMENTS = 256

BUSY_PAUSE = 0.001
"""The pause before an operation that found the file locked is repeated."""

T = TypeVar("T")

NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|ncpfs|9p|afs|ceph|lustre|gpfs|glusterfs|ocfs2|gfs2|beegfs|pvfs2"
    r"|fuse\.(sshfs|s3fs|rclone|glusterfs|ceph.*|davfs|gcsfuse|goofys)"
)

NEEDS_WRITING = re.compile("SQLITE_(READONLY|CANTOPEN|PERM)|EACCES|EPERM|EROFS|ENOENT|ENOTDIR")


class Database:
    """A database file, and the parameters of its URL: sqlite:runs.db?prefix=app&lease=10.

    `path` is absolute, with symbolic links resolved. Raises ValueError for an invalid URL.
    """

    def __init__(self, url: str) -> None:
        path, _, query = url.removeprefix("sqlite:").partition("?")
        if not url.startswith("sqlite:") or path in ("", ":memory:") or path.startswith("//"):
            raise ValueError(
                f"{url!r} does not name a database file: write sqlite:runs.db or "
                "sqlite:/absolute/path/runs.db"
            )
        options = {"prefix": "streams", "lease": DEFAULT_LEASE, "synchronous": "normal"}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in options:
                raise ValueError(
                    f"{name!r} is not a parameter of a sqlite: URL; parameters: "
                    f"{', '.join(options)}"
                )
            options[name] = value
        if not re.fullmatch(r"[\w.:-]{1,200}", options["prefix"]):
            raise ValueError(
                f"prefix={options['prefix']!r} in the sqlite: URL is invalid: use letters, digits "
                "and _ . : -"
            )
        if options["synchronous"] not in ("normal", "full"):
            raise ValueError(
                f"synchronous={options['synchronous']!r} in the sqlite: URL is invalid: write "
                "synchronous=full, or synchronous=normal (the default)"
            )
        self.prefix = options["prefix"]
        self.synchronous = options["synchronous"]
        self.lease = parse_lease(options["lease"], DEFAULT_LEASE)
        self.path = os.path.realpath(path)
        self.wal = f"{self.path}-wal"
        self.locks = Locks(f"{self.path}-locks")
        self._inodes: list[int] | None = None

    def open(self) -> sqlite3.Connection:
        """Opens the file, and makes it if there is none. Blocks the thread, for seconds at most.

        Raises StoreDown or ValueError, with what to do.
        """
        deadline = time.monotonic() + OPENING_SECONDS
        try:
            self._check_place()
            # One process at a time: SQLite answers SQLITE_BUSY to some of these steps at once.
            while not self.locks.acquire("opening"):
                if time.monotonic() > deadline:
                    raise StoreDown(
                        f"another process has been opening {self.path} for {OPENING_SECONDS:g} s: "
                        "end it"
                    )
                time.sleep(0.01)
            try:
                return self._open()
            finally:
                self.locks.release("opening")
        except (sqlite3.Error, OSError) as error:
            kind = UnsuitablePlace if NEEDS_WRITING.match(errorname(error)) else StoreDown
            raise kind(self.explain(error)) from error

    def _check_place(self) -> None:
        kind = file_system(os.path.dirname(self.path))
        if kind is not None and NETWORK_FILE_SYSTEMS.fullmatch(kind):
            raise UnsuitablePlace(
                f"{self.path} is on a network file system ({kind}), where SQLite can lose data: "
                "use a local disk, or a log in Redis"
            )
        with suppress(FileNotFoundError):
            if os.path.isdir(self.path):
                raise StoreDown(f"{self.path} is a folder: name a file in it")
            if (links := os.stat(self.path).st_nlink) > 1:
                raise StoreDown(
                    f"{self.path} has {links} names (hard links), and each of them would have a "
                    "write-ahead log of its own: delete the others, or use symbolic links"
                )

    def _open(self) -> sqlite3.Connection:
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        self._inodes = None
        connection = self.connect()
        try:
            patiently(lambda: self._set_up(connection), OPENING_SECONDS)
            self._inodes = self._find_inodes()
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(
        self, busy_seconds: float = 0, cached_statements: int = CACHED_STATEMENTS
    ) -> sqlite3.Connection:
        """A connection to the existing file, which may be used in any thread.

        SQLite itself waits `busy_seconds` for a lock. A cached statement keeps its values. Raises
        StoreDown if the file is another one than before: SQLite would move the write-ahead log of
        the first into it.
        """
        if self._inodes is not None:
            self.check_files()
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode=rw",
            uri=True,
            timeout=busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=cached_statements,
        )
        # secure_delete zeroes what was deleted, except in a page that becomes free. Those that an
        # eviction frees take the next events; the keeper zeroes those of an expired run.
        pragmas = (
            f"PRAGMA synchronous = {self.synchronous}; PRAGMA secure_delete = fast; "
            "PRAGMA wal_autocheckpoint = 0"
        )
        try:
            # Another process repairs the file after a crash, or closes its last connection.
            patiently(lambda: connection.executescript(pragmas), OPENING_SECONDS)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        # Before anything is written: the file may be somebody else's.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (tables or application or version):
            raise StoreDown(
                f"{self.path} is a database of another program: name a file of its own for the log"
            )
        if version > SCHEMA_VERSION:
            raise StoreDown(
                f"{self.path} was written by a newer version of streams (schema {version}, this "
                f"version knows {SCHEMA_VERSION}): update streams, or name another file"
            )
        if 0 < version < SCHEMA_VERSION:
            raise StoreDown(
                f"{self.path} was written by an older version of streams (schema {version}, this "
                f"version needs {SCHEMA_VERSION}): delete it with its -wal and -shm, or name "
                "another file"
            )
        # In this order: later, neither of the first two has an effect. Small pages make
        # checkpoints shorter, because fewer bytes change.
        connection.execute("PRAGMA page_size = 1024")
        connection.execute("PRAGMA auto_vacuum = incremental")
        (mode,) = connection.execute("PRAGMA journal_mode = wal").fetchone()
        if mode != "wal":
            raise UnsuitablePlace(
                f"the file system of {self.path} has no shared memory, which SQLite needs for "
                "several processes: use a local disk"
            )
        if version == 0:
            connection.executescript(_SCHEMA)
        # Makes the -wal file, and raises an error if nothing can be written.
        connection.execute("UPDATE generation SET number = number")

    def check_files(self) -> None:
        """Raises StoreDown if the files that SQLite has open were deleted or replaced.

        What is committed then is lost with the last process. It takes three microseconds.
        """
        if self._inodes != self._find_inodes():
            raise StoreDown(
                f"{self.path}, its -wal or its -shm was deleted or replaced while the server runs: "
                "move it back; or end all servers that use it, delete its -wal and -shm, and start "
                "them"
            )

    def _find_inodes(self) -> list[int] | None:
        try:
            return [os.stat(path).st_ino for path in (self.path, self.wal, f"{self.path}-shm")]
        except OSError:
            return None

    def explain(self, error: Exception) -> str:
        """What is wrong, and what to do, for the operator."""
        name = errorname(error)
        if is_busy(error):
            return f"another program holds a lock on {self.path}: {self._find_holder()}"
        if name == "SQLITE_FULL":
            return f"the disk of {self.path} is full: make room, and the log continues by itself"
        if name == "SQLITE_NOTADB":
            return f"{self.path} is not a database: name another file, or delete this one"
        if name.startswith("SQLITE_CORRUPT"):
            return f"{self.path} is damaged: restore a backup, or move it away ({error})"
        if NEEDS_WRITING.match(name):
            return (
                f"{self.path} cannot be written ({error}): let this user write the file and its "
                "folder, or name another file"
            )
        return f"{self.path} cannot be used: {error} ({name})"

    def _find_holder(self) -> str:
        """The processes that hold a write lock, according to the kernel."""
        inodes = set()
        for path in (self.path, f"{self.path}-shm"):
            with suppress(OSError):
                inodes.add(str(os.stat(path).st_ino))
        holders = []
        with suppress(OSError), open("/proc/locks") as locks:
            for line in locks:
                _, _, _, kind, pid, inode, *_ = line.replace("-> ", "").split()
                if kind == "WRITE" and inode.rpartition(":")[2] in inodes:
                    with open(f"/proc/{pid}/comm") as command:
                        holders.append(f"process {pid} ({command.read().strip()})")
        return f"end {', '.join(holders)}" if holders else "end it"


def patiently(operation: Callable[[], T], seconds: float) -> T:
    """Runs an operation in a thread, and repeats it while another process writes, for `seconds`.

    SQLite's own waiting looks ten times a second, and rarely finds a gap between those who look
    every millisecond, as the event loops do.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return operation()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE)


def is_busy(error: Exception) -> bool:
    return errorname(error).startswith("SQLITE_BUSY")


def errorname(error: Exception) -> str:
    """SQLite's name of an error, such as SQLITE_FULL, or the kernel's, such as EACCES."""
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "OSError")
        return "SQLITE_FULL" if name in ("ENOSPC", "EDQUOT") else name
    return getattr(error, "sqlite_errorname", type(error).__name__)


def file_system(folder: str, mounts: str = "/proc/self/mounts") -> str | None:
    """The type of the file system of a folder; None where the kernel does not list them."""
    found: tuple[str, str | None] = ("", None)
    with suppress(OSError), open(mounts) as lines:
        for line in lines:
            _, point, kind, *_ = line.split(" ")
            point = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point)
            inside = os.path.join(folder, "").startswith(os.path.join(point, ""))
            if inside and len(point) >= len(found[0]):
                found = (point, kind)
    return found[1]
