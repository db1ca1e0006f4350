"""Follower: finds what other workers have committed since the last look.

Invariant: a look that fails loses nothing; the next one finds the same.
"""

import sqlite3
from collections.abc import Mapping

from streams.log.sqlite.rows import BATCH, find_run, read_entries, read_generation, unpacked
from streams.log.store import Entry, News, Notice

EVENTS = 512
"""A look returns at most this many events of a run that it reads by itself."""

BATCHES = 256
"""A look reads at most this many new batches. The next one goes on from there."""


class Follower:
    """The followed runs of a worker, and how far it has seen the tables."""

    def __init__(self, app: str, worker: str) -> None:
        self._app = app
        self._worker = worker
        self._after: dict[str, int] = {}
        self._runs: dict[int, str] = {}  # the followed runs by their number in the tables
        self._due: set[str] = set()
        self._seen: tuple[sqlite3.Connection | None, int] = (None, -1)
        self.generation = -1
        self._batch = 0
        self._cursor = 0

    def follow(self, after: Mapping[str, int]) -> None:
        """Sets the followed runs, and the events after which they are followed."""
        self._due &= after.keys()
        self._due |= {run for run, number in after.items() if self._after.get(run) != number}
        self._runs = {number: run for number, run in self._runs.items() if run in after}
        self._after = dict(after)

    def is_due(self, run: str) -> None:
        """Makes the next look read a run, because this worker itself has changed it."""
        if run in self._after:
            self._due.add(run)

    def look(self, db: sqlite3.Connection) -> News:
        """News since the last look. Most often there are none, and this takes microseconds."""
        # Another connection's commit changes the version; one of this connection does not.
        (version,) = db.execute("PRAGMA data_version").fetchone()
        if self._seen == (db, version) and not self._due:
            return News({}, [])
        if (generation := read_generation(db)) != self.generation:  # A run may be discarded.
            self._due |= self._after.keys()
            self._runs.clear()
        newest_cursor, notices = self._find_cursors(db)
        entries, newest_batch, has_more = self._read_new_batches(db)
        done: set[str] = set()
        for run in self._due:
            number = find_run(db, self._app, run)
            if number is None:
                notices.append(Notice("forgotten", run))
                done.add(run)
                continue
            self._runs[number] = run
            if found := read_entries(db, number, self._after[run], EVENTS):
                entries[run] = found
            if len(found) < EVENTS:
                done.add(run)
        self._seen = (None, -1) if has_more else (db, version)
        self.generation, self._batch, self._cursor = generation, newest_batch, newest_cursor
        self._due -= done
        for run, found in entries.items():
            self._after[run] = found[-1].number
        return News(entries, notices)

    def _read_new_batches(self, db: sqlite3.Connection) -> tuple[dict[str, list[Entry]], int, bool]:
        """The events of followed runs, except due ones, in the batches since the last look.

        One query for all runs. Returns also the id of the last batch, and whether more may follow.
        """
        entries: dict[str, list[Entry]] = {}
        if not self._runs:  # The followed runs, if any, are all due.
            return entries, _newest(db, "batch"), False
        query = f"SELECT id, run, {BATCH} FROM batch WHERE id > ? ORDER BY id LIMIT {BATCHES}"
        rows = db.execute(query, (self._batch,)).fetchall()
        for _, number, *batch in rows:
            run = self._runs.get(number)
            if run is not None and run not in self._due:
                known = entries.setdefault(run, [])
                after = known[-1].number if known else self._after[run]
                known += unpacked(*batch, after=after)
        newest = rows[-1][0] if rows else self._batch
        return {run: new for run, new in entries.items() if new}, newest, len(rows) == BATCHES

    def _find_cursors(self, db: sqlite3.Connection) -> tuple[int, list[Notice]]:
        """Notices of changed cursors of runs that this worker produces."""
        query = (
            "SELECT c.id, name, worker, c.after, readers FROM cursor AS c "
            "JOIN run ON run.id = c.run "
            "WHERE c.id > ? AND producer = ? AND run.status = 'running' ORDER BY c.id"
        )
        newest = _newest(db, "cursor")
        rows = db.execute(query, (self._cursor, self._worker)).fetchall()
        return newest, [
            Notice("cursor", name, worker, after, readers)
            for _, name, worker, after, readers in rows
            if isinstance(after, int | None) and isinstance(readers, int)
        ]


def _newest(db: sqlite3.Connection, table: str) -> int:
    """The newest id that a table has had."""
    query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
    (number,) = db.execute(query, (table,)).fetchone()
    return int(number)
