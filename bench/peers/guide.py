"""What most tutorials show: FastAPI's StreamingResponse with a generator of f-strings."""

import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from bench.peers import feed

api = FastAPI()


@api.get("/streams/numbers")
async def numbers(count: int, interval: float = 0.0, gated: bool = False) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async for value in feed.numbers(count, interval, gated):
            yield f"data: {json.dumps(value)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


app = feed.gated(api)
