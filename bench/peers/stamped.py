"""This project with the event log that STREAMS_LOG names (default: in memory), for logs.py.

It streams the values of all peers. Each value carries the time at which it was yielded, so that a
viewer on the same machine can compute how late it is.
"""

import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from bench.peers import feed
from streams import Streams, source


async def stamped(count: int, interval: float, gated: bool) -> AsyncIterator[dict[str, Any]]:
    async for value in feed.numbers(count, interval, gated):
        yield {"at": time.monotonic_ns(), **value}


@source
async def private(
    count: int, interval: float = 0.0, gated: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Values for one reader."""
    async for value in stamped(count, interval, gated):
        yield value


@source(shared=True)
async def shared(count: int, interval: float, gated: bool = False) -> AsyncIterator[dict[str, Any]]:
    """The same values for all readers."""
    async for value in stamped(count, interval, gated):
        yield value


logging.getLogger("streams").setLevel(logging.ERROR)
streams = Streams([private, shared], log=os.environ.get("STREAMS_LOG") or None, max_runs=20_000)
app = feed.gated(streams)
