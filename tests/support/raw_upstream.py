"""A model's server that sends exact bytes, and what it has been asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

STREAM = "Content-Type: text/event-stream"

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""The bytes of a response, or a function that sends it. The connection stays open afterwards."""


class Asked(NamedTuple):
    """A request: its headers with names in lower case, its JSON body, and its connection."""

    headers: dict[str, str]
    body: Any
    connection: int


class RawUpstream:
    """Gives one answer per request, the last one to all that follow."""

    def __init__(self, answers: tuple[Answer, ...]) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.targets: list[str] = []
        self.connections = 0
        self._answers = list(answers)
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def open_connections(self) -> int:
        return len(self._writers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = [line.partition(":") for line in head.splitlines()[1:] if line]
                headers = {name.lower(): value.strip() for name, _, value in lines}
                self.targets.append(head.split(" ")[1])
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.asked.append(Asked(headers, json.loads(body or b"null"), number))
                answer = self._answers[min(len(self.asked), len(self._answers)) - 1]
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(writer)
                if writer.is_closing():
                    return
                await writer.drain()
                if isinstance(answer, bytes) and b"\r\nConnection: close\r\n" in answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client has closed the connection.
        finally:
            self._writers.discard(writer)
            writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def raw_upstream(*answers: Answer) -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream(answers)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()
        upstream.close()
        await server.wait_closed()


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole response."""
    length = f"Content-Length: {len(body)}"
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, length, "", ""]).encode() + body


def unfinished(body: bytes, *headers: str) -> bytes:
    """A response that the server does not end."""
    return (
        "\r\n".join(
            ["HTTP/1.1 200 OK", *(headers or [STREAM]), "Transfer-Encoding: chunked", "", ""]
        )
    ).encode() + chunk(body)


def chunk(data: bytes) -> bytes:
    """A part of a body in the chunked coding (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = chunk(b"")


def data(*documents: Any) -> bytes:
    """The events of a stream: texts as they are, anything else as JSON."""
    texts = [d if isinstance(d, str) else json.dumps(d, ensure_ascii=False) for d in documents]
    return b"".join(b"data: %b\n\n" % text.encode() for text in texts)


def delta(finish: str | None = None, **members: Any) -> dict[str, Any]:
    """A chunk of an answer."""
    return {"choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


HELLO = delta(content="Hello")
STOP = delta("stop")
