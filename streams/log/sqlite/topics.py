"""Topics: runs without a producer, to which any worker publishes.

A topic expires unless that is postponed, in the transaction that publishes to it, or when a worker
with readers of it sends its cursor. One that has expired never comes back: the keeper deletes it.
"""

import sqlite3
import time
from typing import Any

import msgspec

from streams.event import frame
from streams.log import RunInfo
from streams.log.sqlite.rows import (
    BATCH,
    LAST,
    can_follow,
    insert_batches,
    insert_run,
    packed,
    raise_generation,
    read_generation,
    unpacked,
)
from streams.log.store import NOT_FOLLOWED, Publication, Published, is_sound, report_damage

EVICTED = 512
"""A publish looks at no more than this many old events, so that none takes long."""


def publish(db: sqlite3.Connection, app: str, publication: Publication) -> Published:
    """Appends an event to a topic, which it makes if there is none."""
    db.execute("BEGIN IMMEDIATE")
    now, key = time.time(), publication.info.unique_key
    query = (
        f"SELECT id, name, status, {LAST}, size, window, info FROM run AS r "
        "WHERE app = ? AND unique_key = ? AND expires > ?"
    )
    row = db.execute(query, (app, key, now)).fetchone()
    if row is not None and not _is_sound(db, *row):
        _drop_damaged(db, *row[:2])
        row = None
    if row is None:
        row = _make(db, app, publication)
    number, run, status, last, size, window, _ = row
    if status != "running":
        return Published(run, last, ended=True)
    if publication.event is not None:
        last += 1
        event = frame(run.encode(), last, *publication.event)
        batch = (number, last, publication.status, False, *packed([event]))
        insert_batches(db, batch, read_generation(db))
        size += len(event)
        if size > window:
            # An eighth more than needed, so that it happens less often.
            size -= _evict(db, number, last, size - window * 7 // 8)
    update = "UPDATE run SET size = ?, expires = max(expires, ?) WHERE id = ?"
    db.execute(update, (size, now + publication.keep, number))
    return Published(run, last)


def _is_sound(
    db: sqlite3.Connection,
    number: int,
    run: Any,
    status: Any,
    last: Any,
    size: Any,
    window: Any,
    info: Any,
) -> bool:
    """Whether an event can follow what there is of a topic. The columns can have any types."""
    if not (can_follow(last) and type(size) is type(window) is int):
        return False
    newest = f"SELECT {BATCH} FROM batch WHERE run = ? ORDER BY last DESC LIMIT 1"
    (*batch,) = db.execute(newest, (number,)).fetchone() or (None,) * 4
    try:
        is_its_own = msgspec.json.decode(info, type=RunInfo).run == run
    except (TypeError, ValueError):
        return False
    (entry,) = unpacked(*batch, after=last - 1)
    return is_its_own and is_sound(run.encode(), entry) and (entry.status or "running") == status


def _drop_damaged(db: sqlite3.Connection, number: int, run: str) -> None:
    report_damage(run, NOT_FOLLOWED)
    drop = "UPDATE run SET name = NULL, expires = 0, status = 'cancelled' WHERE id = ?"
    db.execute(drop, (number,))
    raise_generation(db)


def _make(
    db: sqlite3.Connection, app: str, publication: Publication
) -> tuple[int, str, str, int, int, int, None]:
    """Makes a topic. Returns the same columns as the query of `publish`."""
    info, limits = publication.info, publication.limits
    number = insert_run(db, app, "", info, limits, expires=0)
    start = info.start_frame
    insert_batches(db, (number, 0, None, False, *packed([start])), read_generation(db))
    return number, info.run, "running", 0, len(start), limits.window, None


def _evict(db: sqlite3.Connection, run: int, newest: int, excess: int) -> int:
    """Deletes the oldest events with `excess` bytes, not the newest. Returns the bytes deleted."""
    query = "SELECT last, length(frames) FROM batch WHERE run = ? ORDER BY last LIMIT ?"
    evicted, up_to = 0, -1
    for last, size in db.execute(query, (run, EVICTED)).fetchall():
        if evicted >= excess or last == newest:
            break
        evicted, up_to = evicted + size, last
    db.execute("DELETE FROM batch WHERE run = ? AND last <= ?", (run, up_to))
    return evicted


def keep(db: sqlite3.Connection, app: str, run: str, seconds: float) -> None:
    """Keeps a running topic for at least so many seconds; no longer if it has no readers."""
    now = time.time()
    db.execute(
        "UPDATE run SET expires = CASE WHEN EXISTS "
        "(SELECT 1 FROM cursor WHERE run = run.id AND after IS NOT NULL) "
        "THEN max(expires, :expires) ELSE :expires END "
        "WHERE app = :app AND name = :run AND status = 'running' AND expires > :now",
        {"app": app, "run": run, "now": now, "expires": now + seconds},
    )
