"""The load generator: readers that count events and bytes without parsing them.

Invariants:

1. A reader costs less CPU than the server that it measures.
2. Each event contains MARK, one byte, exactly once. A reader counts events by counting this byte,
   however the network splits the stream.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from bench.peers.feed import MARK

BODY_END = b"0\r\n\r\n"
MARK_BYTE = MARK.encode()
AT_ONCE = 200  # connections opened at the same time, so that the listen backlog is not the limit


class Reader(asyncio.Protocol):
    """One connection, which reads one stream at a time and counts what it receives."""

    def __init__(self, record: bool = False) -> None:
        self.events = 0
        self.bytes = 0
        self.head = b""
        self.asked = 0.0
        self.first = 0.0
        self.moments: list[float] | None = [] if record else None
        self.answered = asyncio.get_running_loop().create_future()
        self.ended = asyncio.get_running_loop().create_future()
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, path: str, last_event_id: str | None = None) -> None:
        """Sends a request and sets the counts to 0."""
        loop = asyncio.get_running_loop()
        self.events = self.bytes = 0
        self.head = self._tail = b""
        self.first = 0.0
        self.answered, self.ended = loop.create_future(), loop.create_future()
        self.asked = time.perf_counter()
        resume = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n{resume}\r\n"
        assert self._transport is not None
        self._transport.write(request.encode())

    def data_received(self, data: bytes) -> None:
        if not self.answered.done():
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            if not self.head.startswith(b"HTTP/1.1 200"):
                self._fail(f"the server answered {self.head!r}")
                return
            data = self.head
            self.answered.set_result(None)
        self.bytes += len(data)
        if new := data.count(MARK_BYTE):
            if not self.events:
                self.first = time.perf_counter()
            self.events += new
            if self.moments is not None:
                self.moments += [time.perf_counter()] * new
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if self._tail == BODY_END and not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"connection lost after {self.events} events: {error}")

    def _fail(self, what: str) -> None:
        for future in (self.answered, self.ended):
            if not future.done():
                future.set_exception(ConnectionError(what))
                future.exception()  # asyncio logs an error that nobody retrieves

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connected(port: int, record: bool = False) -> Reader:
    loop = asyncio.get_running_loop()
    _, reader = await loop.create_connection(lambda: Reader(record), "127.0.0.1", port)
    return reader


async def opened(port: int, path: str, count: int, record: bool = False) -> list[Reader]:
    """Opens `count` readers; returns when each has received the head of its response."""
    readers: list[Reader] = []
    while len(readers) < count:
        batch = min(AT_ONCE, count - len(readers))
        new = await asyncio.gather(*(connected(port, record) for _ in range(batch)))
        for reader in new:
            reader.ask(path)
        await asyncio.gather(*(reader.answered for reader in new))
        readers += new
    return readers


async def all_ended(readers: Sequence[Reader], events: int, within: float) -> None:
    """Waits until all streams have ended.

    Raises TimeoutError after `within` seconds, and ValueError if a reader received another number
    of events than `events`.
    """
    async with asyncio.timeout(within):
        await asyncio.gather(*(reader.ended for reader in readers))
    counts = {reader.events for reader in readers}
    if counts != {events}:
        raise ValueError(f"readers received {sorted(counts)} events; each should receive {events}")


async def stream(port: int, path: str, events: int) -> Reader:
    """Reads one stream to its end, on a new connection."""
    reader = await connected(port)
    reader.ask(path)
    await all_ended([reader], events, 60)
    reader.close()
    return reader


async def go(port: int) -> None:
    """Opens the peer's gate: its gated streams start to send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /go HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
