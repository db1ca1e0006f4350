"""Litestar's ServerSentEvent with a generator of JSON texts."""

import json
from collections.abc import AsyncIterator

from litestar import Litestar, get
from litestar.response import ServerSentEvent

from bench.peers import feed


async def numbers(count: int, interval: float = 0.0, gated: bool = False) -> ServerSentEvent:
    async def texts() -> AsyncIterator[str]:
        async for value in feed.numbers(count, interval, gated):
            yield json.dumps(value)

    return ServerSentEvent(texts())


app = feed.gated(Litestar([get("/streams/numbers")(numbers)]))
