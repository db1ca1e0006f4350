"""Real servers and connections: an app in this process or in one of its own, and raw sockets."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn
from httpx_sse import ServerSentEvent, aconnect_sse

ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serves an app from this event loop; gives its URL."""
    options = {"http": "httptools", "log_level": "warning", "lifespan": "off", **options}
    server = uvicorn.Server(uvicorn.Config(app, port=0, **options))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        with anyio.fail_after(10):
            await task


@asynccontextmanager
async def client_of(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app, **options) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def until(holds: Callable[[], Any], what: str = "", seconds: float = 5) -> None:
    """Waits until `holds()` is true, asking at every turn of the event loop.

    Raises AssertionError after `seconds`: `what` is the state that was not reached, in words.
    """
    deadline = anyio.current_time() + seconds
    while not holds():
        assert anyio.current_time() < deadline, f"not reached in {seconds:g} s: {what}"
        await asyncio.sleep(0.001)


async def every_event(
    client: httpx.AsyncClient, url: str, last_event_id: str | None = None, **options: Any
) -> list[ServerSentEvent]:
    """All events of a stream, to its end, as an independent parser sees them."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with anyio.fail_after(20):
        async with aconnect_sse(
            client, options.pop("method", "GET"), url, headers=headers, **options
        ) as stream:
            stream.response.raise_for_status()
            return [event async for event in stream.aiter_sse()]


class Connection:
    """A raw HTTP/1.1 connection: what it has received so far, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    @property
    def head(self) -> str:
        return self.received.partition(b"\r\n\r\n")[0].decode().lower()

    @property
    def body(self) -> bytes:
        """The body with the chunked coding removed, as far as its chunks are complete."""
        return dechunked(self.received.partition(b"\r\n\r\n")[2])

    @property
    def run(self) -> str:
        found = re.search(r"/runs/([\w-]{22})", self.received.decode(errors="replace"))
        assert found, self.received
        return found[1]

    @property
    def terminated(self) -> bool:
        return self.received.endswith(b"0\r\n\r\n")

    async def until(
        self, holds: Callable[["Connection"], Any], what: str = "", seconds: float = 5
    ) -> None:
        """Reads until `holds(self)`.

        Raises AssertionError after `seconds`, and when the connection ends first: `what` is the
        state that was not reached, in words.
        """
        try:
            with anyio.fail_after(seconds):
                while not holds(self):
                    data = await self.reader.read(65536)
                    assert data, f"the connection ended before this: {what}; {self.received!r}"
                    self.received += data
        except TimeoutError:
            raise AssertionError(
                f"not reached in {seconds:g} s: {what}; received {self.received!r}"
            ) from None

    async def to_the_end(self, seconds: float = 5) -> None:
        with anyio.fail_after(seconds):
            while data := await self.reader.read(65536):
                self.received += data

    def abort(self) -> None:
        self.writer.transport.abort()


def dechunked(data: bytes) -> bytes:
    body = b""
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", data):
        size, start = int(match[1], 16), match.end()
        if len(data) < start + size + 2 or size == 0:
            break
        body += data[start : start + size]
        data = data[start + size + 2 :]
    return body


@asynccontextmanager
async def connection(
    url: str,
    path: str,
    *,
    method: str = "GET",
    headers: str = "",
    receive_buffer: int | None = None,
) -> AsyncIterator[Connection]:
    """A request just sent over a socket of its own. `headers` are lines with CRLF."""
    host, port = url.removeprefix("http://").split(":")
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    limit = receive_buffer or 2**16
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode("latin-1"))
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def server_process(
    port: int | socket.socket, *arguments: str, app: str = "app:app", **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """A uvicorn in a process of its own, listening when this begins, killed when it ends.

    Given a socket, any number of them can listen there together.
    """
    fd = [port.fileno()] if isinstance(port, socket.socket) else []
    listen = ["--fd", str(fd[0])] if fd else ["--port", str(port)]
    command = ["uvicorn", app, *listen, *arguments]
    with uvicorn_process(command, pass_fds=fd, **environ) as process:
        yield process


@contextmanager
def uvicorn_process(
    command: list[str], *, pass_fds: Sequence[int] = (), **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """Runs `python -m command`, which starts uvicorn; kills it at the end.

    Begins when uvicorn listens. Raises AssertionError with its log if it ends instead.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environ},
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    assert process.stderr is not None
    try:
        log = ""
        for line in process.stderr:
            log += line
            if "Uvicorn running" in line:
                break
        else:
            raise AssertionError(f"{command[0]} did not start:\n{log}")
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stderr.close()


def listening() -> tuple[socket.socket, str]:
    """A socket that listens for server processes, and its URL."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1000)
    return sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


async def exit_of(process: subprocess.Popen[Any], seconds: float) -> int:
    """Waits for a process to end and returns its exit code. Raises TimeoutError after `seconds`."""
    with anyio.fail_after(seconds):
        while (code := process.poll()) is None:
            await asyncio.sleep(0.01)
        return code


Request = Callable[..., Awaitable[httpx.Response]]
