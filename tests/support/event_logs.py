"""What the tests of all event logs use: runs of a known size, and reading them to their end."""

from datetime import UTC, datetime
from typing import Any

import anyio

from streams import EventLog
from streams.log import Limits, Reader, RunInfo, RunLog

SIZE = 1000
DATA = b"x" * 900  # its frame has a little less than SIZE bytes


def info(run: str = "r", **members: Any) -> RunInfo:
    return RunInfo(**{"run": run, "source": "s", "started": datetime.now(UTC), **members})


_SELECTED: list[dict[str, Any]] = [
    {"run": "a-other", "owner": "a", "source": "other"},
    {"run": "a-1", "owner": "a", "key": "chat-1"},
    {"run": "a-10", "owner": "a", "key": "chat-10"},
    {"run": "a-2", "owner": "a", "key": "chat-2"},
    {"run": "b-x", "owner": "b", "key": "chat-%"},
    {"run": "none", "key": "chat-1"},
    {"run": "refused", "owner": "a", "key": "chat-1x"},
    {"run": "gone", "owner": "a", "key": "chat-1y"},
]

SELECTED_RUNS = [
    info(**members, started=datetime(2026, 1, 1, second=second, tzinfo=UTC))
    for second, members in enumerate(_SELECTED)
]
"""Runs to select from: `refused` is refused, `gone` discarded, and `b-x` completed."""

SELECTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["none", "b-x", "a-2", "a-10", "a-1", "a-other"]),
    ({"limit": 2}, ["none", "b-x"]),
    ({"owner": "a"}, ["a-2", "a-10", "a-1", "a-other"]),
    ({"owner": "a", "limit": 2}, ["a-2", "a-10"]),
    ({"owner": None}, ["none"]),
    ({"owner": "nobody"}, []),
    ({"key": "chat-1"}, ["none", "a-1"]),
    ({"key": "chat"}, []),
    ({"key_prefix": "chat-1"}, ["none", "a-10", "a-1"]),
    ({"key_prefix": "chat-", "limit": 2}, ["none", "b-x"]),
    ({"key_prefix": ""}, ["none", "b-x", "a-2", "a-10", "a-1"]),
    ({"key_prefix": "chat-1", "owner": "a"}, ["a-10", "a-1"]),
    ({"key": "chat-1", "owner": "a"}, ["a-1"]),
    ({"key": "chat-1", "owner": None}, ["none"]),
    ({"source": "other"}, ["a-other"]),
    ({"source": "other", "owner": "a"}, ["a-other"]),
    ({"status": "running"}, ["none", "a-2", "a-10", "a-1", "a-other"]),
    ({"status": "completed"}, ["b-x"]),
    ({"status": "completed", "owner": "b"}, ["b-x"]),
    ({"status": "failed", "owner": "b"}, []),
    ({"status": "completed", "key": "chat-%"}, ["b-x"]),
]
"""Selections, and what they select of these."""


async def new(store: EventLog, run: str = "r", **options: Any) -> RunLog:
    """Creates a run, and opens it, with a large window that is retained for long."""
    log = await opening(store, run, **options)
    log.open()
    return log


async def opening(store: EventLog, run: str = "r", shared: bool = False, **options: Any) -> RunLog:
    limits = Limits(**{"window": 2**20, "retain": 300, **options})
    return await store.create(info(run, shared=shared, arguments_hash=run), limits)


async def drained(reader: Reader) -> bytes:
    """Reads until the log is closed, and returns all frames."""
    return b"".join([frames async for frames in reader])


async def read_all(log: RunLog, after: int = -1) -> bytes:
    """The frames of a closed log that follow event `after`."""
    with anyio.fail_after(5), log.read(after) as reader:
        return await drained(reader)
