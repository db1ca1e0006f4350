"""Sources that several test modules use, and helpers for tests of sources."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import anyio
import pytest

from streams import Source, StreamError, source


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


async def all_of(events: AsyncIterable[Any]) -> list[Any]:
    """All events of a source that ends within 20 s."""
    with anyio.fail_after(20):
        return [event async for event in events]


def check_bounds(
    source: Source[..., Any], name: str, below: float, least: float, most: float, above: float
) -> None:
    """Checks that a parameter takes the values from `least` to `most`, but not the other two."""
    for value in (least, most):
        assert source.from_json(json.dumps({name: value}).encode()) == {name: value}
    for value in (below, above):
        with pytest.raises(StreamError, match=name):
            source.from_json(json.dumps({name: value}).encode())
