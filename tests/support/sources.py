"""Sources that several test modules use."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from streams import source


def gated(gate: asyncio.Event) -> Any:
    """A source that yields 1, waits until `gate` is set, and yields 2."""

    @source
    async def gated() -> AsyncIterator[Any]:
        """Waits for the gate between its two events."""
        yield 1
        await gate.wait()
        yield 2

    return gated


@source
async def ticks() -> AsyncIterator[int]:
    """A source for STREAMS_SOURCES to import."""
    yield 1
