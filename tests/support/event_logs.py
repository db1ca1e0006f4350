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


async def new(store: EventLog, run: str = "r", **options: Any) -> RunLog:
    """Creates a run, and opens it, with a large window that is retained for long."""
    log = await opening(store, run, **options)
    log.open()
    return log


async def opening(store: EventLog, run: str = "r", **options: Any) -> RunLog:
    limits = Limits(**{"window": 2**20, "retain": 300, **options})
    return await store.create(info(run), limits)


async def drained(reader: Reader) -> bytes:
    """Reads until the log is closed, and returns all frames."""
    return b"".join([frames async for frames in reader])


async def read_all(log: RunLog, after: int = -1) -> bytes:
    """The frames of a closed log that follow event `after`."""
    with anyio.fail_after(5), log.read(after) as reader:
        return await drained(reader)
