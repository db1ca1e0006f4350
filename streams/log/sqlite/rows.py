"""Rows: what several operations read from the tables and write to them.

A batch is a row with the frames of one run in one commit.
"""

import sqlite3
import time
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from struct import Struct

from msgspec import UNSET

from streams.event import MAX_EVENTS, End, encode_json, frame
from streams.log import Limits, RunInfo, Selection, Status
from streams.log.store import Damaged, Entry, State, report_damage, state_of, unsound

BATCHES_PER_QUERY = 16

_END = Struct("I")

IS_HELD = "(expires IS NULL OR expires > ?)"
NO_ARGUMENTS = "CASE typeof(arguments) WHEN 'text' THEN NULL ELSE arguments END"
"""For `load_state`: arguments, which may have a megabyte, are not read unless they are damaged."""
BATCH = "last, status, ends, frames"
LAST = "coalesce((SELECT max(last) FROM batch WHERE run = r.id), -1)"
FIRST = (
    "coalesce((SELECT last + 1 - length(ends) / 4 FROM batch WHERE run = r.id "
    "ORDER BY last LIMIT 1), 0)"
)


def find_run(db: sqlite3.Connection, app: str, run: str) -> int | None:
    """The number by which the tables know a run."""
    query = f"SELECT id FROM run WHERE app = ? AND name = ? AND {IS_HELD}"
    row = db.execute(query, (app, run, time.time())).fetchone()
    return None if row is None else int(row[0])


def find_by_key(db: sqlite3.Connection, app: str, unique_key: str) -> str | None:
    """The run that has a unique key."""
    query = f"SELECT name FROM run WHERE app = ? AND unique_key = ? AND {IS_HELD}"
    row = db.execute(query, (app, unique_key, time.time())).fetchone()
    return None if row is None else str(row[0])


def select_runs(db: sqlite3.Connection, app: str, selection: Selection) -> list[str]:
    """The selected runs, newest first."""
    conditions: dict[str, object] = {
        "app = ?": app,
        IS_HELD: time.time(),
        "status != ?": "refused",
        "status = ?": selection.status,
        # Only with `=`, SQLite uses the index.
        "owner IS ?" if selection.owner is None else "owner = ?": selection.owner,
        "key = ?": selection.key,
        "key >= ?": selection.key_prefix,
        "key < ?": UNSET if selection.key_prefix is UNSET else f"{selection.key_prefix}\x7f",
        "source = ?": selection.source,
    }
    given = {condition: value for condition, value in conditions.items() if value is not UNSET}
    values = list(given.values())
    query = f"SELECT name FROM run WHERE {' AND '.join(given)}"
    if selection.after is not UNSET:
        query += " AND (started, name) < (?, ?)"
        values += selection.after
    query += " ORDER BY started DESC, name DESC LIMIT ?"
    return [name for (name,) in db.execute(query, (*values, selection.limit)).fetchall()]


def load_state(
    db: sqlite3.Connection, app: str, run: str, arguments: str = "arguments"
) -> State | None:
    """The state of a run; None if there is no such run, or it has expired. Raises Damaged.

    `arguments` is the expression for them.
    """
    if (number := find_run(db, app, run)) is None:
        return None
    columns = f"info, {arguments}, status, producer, window, retain, drops_oldest"
    info, given, status, producer, window, retain, drops_oldest, last, first = db.execute(
        f"SELECT {columns}, {LAST}, {FIRST} FROM run AS r WHERE id = ?", (number,)
    ).fetchone()
    cursors = db.execute(
        "SELECT worker, after, readers FROM cursor WHERE run = ? AND after IS NOT NULL", (number,)
    )
    return state_of(
        info,
        given,
        status=status,
        producer=producer,
        last=last,
        first=first,
        limits={"window": window, "retain": retain, "drops_oldest": bool(drops_oldest)},
        cursors={worker: (had, readers) for worker, had, readers in cursors.fetchall()},
    )


def find_state(
    db: sqlite3.Connection, app: str, run: str, arguments: str = "arguments"
) -> State | None:
    """Like `load_state`; None also for a state that cannot be read, which is logged."""
    try:
        return load_state(db, app, run, arguments)
    except Damaged as damaged:
        report_damage(run, damaged)
        return None


def read_entries(db: sqlite3.Connection, run: int, after: int, count: int) -> list[Entry]:
    """At most `count` events of a run after event `after`."""
    entries: list[Entry] = []
    query = (
        f"SELECT {BATCH} FROM batch WHERE run = ? AND last > ? ORDER BY last "
        f"LIMIT {BATCHES_PER_QUERY}"
    )
    while len(entries) < count:
        # To the end: a cursor that is not read to its end would keep its snapshot.
        rows = db.execute(query, (run, after)).fetchall()
        for batch in rows:
            entries += unpacked(*batch, after=after)
            after = entries[-1].number if entries else after
        if len(rows) < BATCHES_PER_QUERY:
            break
    return entries[:count]


def unpacked(
    last: int, status: Status | None, ends: bytes, frames: bytes, *, after: int
) -> list[Entry]:
    """The events after `after` of a batch with these columns. They can have any types."""
    try:
        return _unpacked(last, status, ends, frames, after)
    except (TypeError, ValueError):
        return [unsound(after + 1)]


def _unpacked(
    last: int, status: Status | None, ends: bytes, frames: bytes, after: int
) -> list[Entry]:
    if len(ends) == _END.size:
        return [Entry(last, frames, status)] if last > after else []
    if not ends:
        raise ValueError("a batch without events")
    bounds = [0, *array("I", ends)]
    number = last - len(bounds) + 1
    entries = [
        Entry(number + i, frames[begin:end])
        for i, (begin, end) in enumerate(pairwise(bounds), 1)
        if number + i > after
    ]
    if status is not None and entries:
        entries[-1] = Entry(last, entries[-1].frame, status)
    return entries


def packed(frames: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The columns `ends` and `frames` of a batch."""
    if len(frames) == 1:
        return _END.pack(len(frames[0])), frames[0]
    return array("I", accumulate(map(len, frames))).tobytes(), b"".join(frames)


def insert_run(
    db: sqlite3.Connection,
    app: str,
    producer: str,
    info: RunInfo,
    limits: Limits,
    expires: float | None = None,
) -> int:
    """Stores a run whose unique key no other run has. Returns its number."""
    if info.unique_key is not None:
        free = "UPDATE run SET unique_key = NULL WHERE app = ? AND unique_key = ?"
        db.execute(free, (app, info.unique_key))  # of one that has expired
    row = {
        "app": app,
        "name": info.run,
        "unique_key": info.unique_key,
        "owner": info.owner,
        "key": info.key,
        "source": info.source,
        "started": info.place[0],
        "producer": producer,
        "window": limits.window,
        "retain": limits.retain,
        "drops_oldest": limits.drops_oldest,
        "expires": expires,
        "info": encode_json(info.without_arguments()),
        "arguments": info.arguments,
    }
    insert = f"INSERT INTO run ({', '.join(row)}) VALUES (:{', :'.join(row)})"
    return db.execute(insert, row).lastrowid or 0


def insert_batches(db: sqlite3.Connection, batches: Sequence[object], generation: int) -> bool:
    """Stores batches in one statement. They are given as their columns, one after another.

    Returns False, and stores none, if another worker has raised the generation.
    """
    return db.execute(*insertion(batches, generation)).rowcount > 0


def insertion(batches: Sequence[object], generation: int) -> tuple[str, Sequence[object]]:
    """The statement of `insert_batches`, and its values."""
    return _insert(len(batches) // 6), (*batches, generation)


@cache
def _insert(count: int) -> str:
    rows = ",".join(["(?,?,?,?,?,?)"] * count)
    return (
        "INSERT INTO batch (run, last, status, frees_key, ends, frames) "
        f"SELECT * FROM (VALUES {rows}) WHERE (SELECT number FROM generation) = ?"
    )


def can_follow(last: object) -> bool:
    """Whether an event can follow event `last`, which is what a column has: a value of any type."""
    return type(last) is int and last < MAX_EVENTS - 1


def close_run(db: sqlite3.Connection, app: str, run: str, end: End, *, frees_key: bool) -> bool:
    """Closes a running run on behalf of any worker, in a transaction that has begun.

    Events that no other could follow are deleted: no worker has written them.
    """
    query = "SELECT id FROM run WHERE app = ? AND name = ? AND status = 'running'"
    found = db.execute(query, (app, run)).fetchone()
    if found is None:
        return False
    odd = "DELETE FROM batch WHERE run = ? AND (typeof(last) != 'integer' OR last >= ?)"
    db.execute(odd, (*found, MAX_EVENTS - 1))
    number, last = db.execute(f"SELECT id, {LAST} FROM run AS r WHERE id = ?", found).fetchone()
    ends = packed([frame(run.encode(), last + 1, b"end", end.encode())])
    insert_batches(db, (number, last + 1, end.status, frees_key, *ends), read_generation(db))
    raise_generation(db)
    return True


def raise_generation(db: sqlite3.Connection) -> None:
    """Makes every worker look which runs it still produces, before its next commit."""
    db.execute("UPDATE generation SET number = number + 1")


def read_generation(db: sqlite3.Connection) -> int:
    (number,) = db.execute("SELECT number FROM generation").fetchone()
    return int(number)
