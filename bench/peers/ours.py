"""This project: three sources over the values that all peers stream, with default policies.

Only limits are wider: `history` is to be replayed whole, and 10,000 runs are to be open.
"""

from collections.abc import AsyncIterator
from typing import Any

from bench.peers import feed
from streams import Streams, source


@source
async def numbers(
    count: int, interval: float = 0.0, gated: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Values, to one reader."""
    async for value in feed.numbers(count, interval, gated):
        yield value


@source(name="feed", shared=True)
async def shared(count: int, interval: float) -> AsyncIterator[dict[str, Any]]:
    """Values, to all readers."""
    async for value in feed.numbers(count, interval, gated=True):
        yield value


@source(window=2**28)
async def history(count: int) -> AsyncIterator[dict[str, Any]]:
    """Values to be read again."""
    async for value in feed.numbers(count):
        yield value


app = feed.gated(Streams([numbers, shared, history], max_runs=20_000))
