"""A follower's looks, while others commit."""

import sqlite3
from contextlib import closing

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
