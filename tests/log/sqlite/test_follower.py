"""A follower's looks, while others commit."""

import sqlite3
from contextlib import closing

import pytest

from streams.log import Limits
from streams.log.sqlite import SQLiteStore
from streams.log.sqlite.follower import Follower
from streams.log.sqlite.rows import find_run, insert_batches, packed, read_generation
from streams.log.store import Append
from tests.support.event_logs import info


async def test_an_event_that_is_committed_during_a_look_is_told_once(sqlite_url: str) -> None:
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), Limits(2**20, 300))
    await store.append([Append("r", 0, [b"0"])])
    path = sqlite_url.removeprefix("sqlite:")
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as reading,
        closing(sqlite3.connect(path, isolation_level=None)) as writing,
    ):
        commits = iter([1])

        def commit(statement: str) -> None:
            if "FROM batch WHERE run" in statement and (number := next(commits, None)):
                batch = (find_run(writing, "streams", "r"), number, None, False, *packed([b"1"]))
                assert insert_batches(writing, batch, read_generation(writing))

        reading.set_trace_callback(commit)
        follower = Follower("streams", "other")
        follower.follow({"r": -1})
        told = [
            entry.number for _ in range(3) for entry in follower.look(reading).entries.get("r", [])
        ]
    await store.aclose()
    assert told == [0, 1]


@pytest.mark.parametrize("is_due", [True, False])
async def test_what_is_damaged_after_a_whole_event_is_noticed_in_the_same_look(
    is_due: bool, sqlite_url: str
) -> None:
    store = SQLiteStore(sqlite_url)
    await store.open("one")
    await store.create(info(), Limits(2**20, 300))
    await store.append([Append("r", 0, [b"0"])])
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:"), isolation_level=None)) as db:
        follower = Follower("streams", "other")
        follower.follow({"r": -1})
        if not is_due:
            follower.look(db)
        await store.append([Append("r", 1, [b"1"])])
        db.execute("PRAGMA ignore_check_constraints = ON")
        for odd in ("odd", "odder"):
            columns = "(run, last, frees_key, ends, frames)"
            db.execute(f"INSERT INTO batch {columns} VALUES (1, ?, 0, x'01000000', 'x')", (odd,))
        follower.is_due("-")
        found = [(e.number, e.frame) for e in follower.look(db).entries["r"]]
    await store.aclose()
    whole = [(0, b"0"), (1, b"1")] if is_due else [(1, b"1")]
    assert found == [*whole, (2, b""), (3, b"")]
