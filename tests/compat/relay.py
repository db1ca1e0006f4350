"""A TCP relay that cuts a client's connection to the server at a given place in the stream."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.servers import until


def has_shown(shown: bytes | bytearray, number: int) -> bool:
    """Whether a client has printed or reported the counter's event with this number."""
    return re.search(rb"number\W+%d\b" % number, shown) is not None


@asynccontextmanager
async def cutting(url: str, last: bytes, has_read: Callable[[], bool]) -> AsyncIterator[str]:
    """Relays to the server at `url`, and cuts the first stream after the bytes `last`.

    The relay sends all bytes up to the cut in one write, so that a client reads them together. Then
    it waits until `has_read()` before it cuts, because a client may discard what it has not yet
    read when its connection breaks.
    """
    found = False
    was_cut = False

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def copy_until_cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal found, was_cut
        received = b""
        while not found and (data := await reader.read(65536)):
            received += data
            if last in received:
                found = True
                writer.write(received.partition(last)[0] + last)
                await until(has_read, f"the client has read the stream up to {last!r}", 30)
                was_cut = True
                return
        writer.write(received)
        await copy(reader, writer)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = url.removeprefix("http://").split(":")
        above, below = await asyncio.open_connection(host, int(port))
        tasks = [
            asyncio.create_task(copy(reader, below)),
            asyncio.create_task(copy_until_cut(above, writer)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        writer.close()
        below.close()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert was_cut, f"the relay has not cut a stream after {last!r}"
    finally:
        server.close()
