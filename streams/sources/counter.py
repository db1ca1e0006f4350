"""A source that counts: the first one to try."""

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from msgspec import Meta

from streams import source

SAFE = 2**53 - 1  # JavaScript represents larger integers only approximately.


@source
async def counter(
    start: Annotated[int, Meta(ge=-SAFE, le=SAFE - 10**9, description="The first number")] = 0,
    count: Annotated[int, Meta(ge=0, le=10**9, description="How many numbers")] = 10,
    interval: Annotated[float, Meta(ge=0, le=60, description="Seconds between numbers")] = 0.1,
    *,
    after: int = 0,
) -> AsyncIterator[dict[str, int]]:
    """Counts, with a pause between two numbers."""
    for number in range(start + after, start + count):
        if interval and number > start:
            await anyio.sleep(interval)
        yield {"number": number}
