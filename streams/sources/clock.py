"""The smallest source: a clock. All viewers share one run."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
from msgspec import Meta

from streams import source


@source(shared=True)
async def clock(
    interval: Annotated[float, Meta(ge=0.01, le=60, description="Seconds between events")] = 1.0,
) -> AsyncIterator[dict[str, Any]]:
    """Sends the time of day (UTC) every interval seconds."""
    while True:
        yield {"time": datetime.now(UTC)}
        await anyio.sleep(interval)
