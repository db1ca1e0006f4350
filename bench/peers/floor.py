"""The floor: a raw ASGI app that sends ready-made bytes. No Python app can do less work."""

import asyncio
import random
from typing import Any
from urllib.parse import parse_qs

from bench.peers.feed import gate, gated, value

FRAME = b'id: 0123456789abcdefghijkl.123456\ndata: {"number":123456,"content":"%b"}\n\n' % (
    value(0)["content"].encode()
)

tick = asyncio.Event()
feed: asyncio.Task[None] | None = None


async def _feed(count: int, interval: float) -> None:
    global tick
    await gate.wait()
    for _ in range(count):
        await asyncio.sleep(interval)
        tick.set()
        tick = asyncio.Event()


async def raw(scope: Any, receive: Any, send: Any) -> None:
    global feed
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    count, interval = int(query.get("count", 1)), float(query.get("interval", 0))
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    message = {"type": "http.response.body", "body": FRAME, "more_body": True}
    match scope["path"]:
        case "/streams/numbers":
            if "gated" in query:
                await gate.wait()
            if interval:
                await asyncio.sleep(interval * random.random())
            for _ in range(count):
                await send(message)
                if interval:
                    await asyncio.sleep(interval)
        case "/streams/feed":
            if feed is None:
                feed = asyncio.create_task(_feed(count, interval))
            for _ in range(count):
                await tick.wait()
                await send(message)
        case "/streams/history":
            await gate.wait()
            await send({**message, "body": history(count)})
    await send({"type": "http.response.body"})


def history(count: int, buffers: dict[int, bytes] = {}) -> bytes:  # noqa: B006
    """Returns one buffer of `count` frames, which is created only once."""
    if count not in buffers:
        buffers[count] = FRAME * count
    return buffers[count]


app = gated(raw)
