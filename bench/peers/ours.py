"""This project, with default policies: three sources that stream the values of all peers.

Only the limits are higher: `history` is replayed as a whole, and 10,000 runs are open at once.
"""

from collections.abc import AsyncIterator
from typing import Any

from bench.peers import feed
from streams import Streams, source


@source
async def numbers(
    count: int, interval: float = 0.0, gated: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Values for one reader."""
    async for value in feed.numbers(count, interval, gated):
        yield value


@source(name="feed", shared=True)
async def shared(count: int, interval: float) -> AsyncIterator[dict[str, Any]]:
    """The same values for all readers."""
    async for value in feed.numbers(count, interval, gated=True):
        yield value


@source(window=2**28)
async def history(count: int) -> AsyncIterator[dict[str, Any]]:
    """Values that are replayed later."""
    async for value in feed.numbers(count):
        yield value


app = feed.gated(Streams([numbers, shared, history], max_runs=20_000))
