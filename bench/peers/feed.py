"""What every Python peer streams: the same values at the same pace, held back by a gate.

A case first opens its connections and then the gate (GET /go), so that it measures only events.
Each value contains MARK once; the load generator counts events by it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

MARK = "~"

gate = asyncio.Event()

App = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


def value(number: int) -> dict[str, Any]:
    return {"number": number, "content": f" and so on{MARK}"}


async def numbers(
    count: int, interval: float = 0.0, gated: bool = False
) -> AsyncIterator[dict[str, Any]]:
    """Yields `count` values, `interval` seconds apart.

    The first one comes at a random time within the first interval, so that streams are not in step.
    """
    if gated:
        await gate.wait()
    if interval:
        await asyncio.sleep(interval * random.random())
    for number in range(count):
        yield value(number)
        if interval:
            await asyncio.sleep(interval)


class Queues:
    """Fan-out as people write it by hand: one task puts each value into one queue per client."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Any]] = set()
        self._task: asyncio.Task[None] | None = None

    async def _feed(self, count: int, interval: float) -> None:
        async for value in numbers(count, interval, gated=True):
            for queue in self._queues:
                queue.put_nowait(value)
        for queue in self._queues:
            queue.put_nowait(None)

    async def subscribe(self, count: int, interval: float) -> AsyncIterator[dict[str, Any]]:
        if self._task is None:
            self._task = asyncio.create_task(self._feed(count, interval))
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queues.add(queue)
        try:
            while (value := await queue.get()) is not None:
                yield value
        finally:
            self._queues.discard(queue)


def gated(app: App) -> App:
    """Wraps `app`; GET /go opens the gate."""

    async def with_gate(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/go":
            await app(scope, receive, send)
            return
        gate.set()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    return with_gate
