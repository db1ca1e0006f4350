"""The stores of a SharedLog that the tests run on, by the scheme of their URL."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import redis

from streams.log.redis import RedisStore
from streams.log.shared import SharedLog
from streams.log.sqlite import SQLiteStore
from streams.log.store import Store

STORES: dict[str, Callable[[str], Store]] = {
    "redis": RedisStore,
    "rediss": RedisStore,
    "redis+unix": RedisStore,
    "sqlite": SQLiteStore,
}


def shared_log(url: str, **options: Any) -> SharedLog:
    """A worker's log in the store of a URL."""
    return SharedLog(STORES[url.partition(":")[0]](url), **options)


def with_lease(url: str, seconds: float) -> str:
    """The URL with another lease."""
    return f"{url}{'&' if '?' in url else '?'}lease={seconds:g}"


def remains(url: str) -> list[Any]:
    """What a store holds of runs, and of workers because of their runs."""
    if url.startswith("sqlite:"):
        path = url.removeprefix("sqlite:").partition("?")[0]
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            query = "SELECT 'run', name FROM run UNION ALL SELECT 'batch', id FROM batch"
            return connection.execute(query).fetchall()
    with redis.Redis.from_url(url.partition("?")[0], decode_responses=True) as client:
        keys: Any = client.keys(f"{url.partition('prefix=')[2] or 'streams'}:*")
    return [key for key in keys if key.split(":")[1] in ("run", "log", "cursors", "unique", "runs")]
