"""sse-starlette alone, on Starlette: a generator of JSON texts; fan-out uses a queue per client."""

import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from bench.peers import feed

queues = feed.Queues()


async def _texts(values: AsyncIterator[Any]) -> AsyncIterator[dict[str, str]]:
    async for value in values:
        yield {"data": json.dumps(value)}


async def numbers(request: Request) -> EventSourceResponse:
    query = request.query_params
    count, interval = int(query["count"]), float(query.get("interval", 0))
    return EventSourceResponse(_texts(feed.numbers(count, interval, "gated" in query)))


async def shared(request: Request) -> EventSourceResponse:
    query = request.query_params
    values = queues.subscribe(int(query["count"]), float(query["interval"]))
    return EventSourceResponse(_texts(values))


routes = [Route("/streams/numbers", numbers), Route("/streams/feed", shared)]
app = feed.gated(Starlette(routes=routes))
