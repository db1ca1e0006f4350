"""FastAPI's own server-sent events: an endpoint that yields, with EventSourceResponse."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse

from bench.peers import feed

api = FastAPI()


@api.get("/streams/numbers", response_class=EventSourceResponse)
async def numbers(
    count: int, interval: float = 0.0, gated: bool = False
) -> AsyncIterator[dict[str, Any]]:
    async for value in feed.numbers(count, interval, gated):
        yield value


app = feed.gated(api)
