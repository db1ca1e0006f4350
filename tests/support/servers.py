"""Real servers, in this process or in a separate one, and clients that connect to them."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn
from httpx_sse import ServerSentEvent, aconnect_sse

ROOT = Path(__file__).parent.parent.parent


class _ShortSleeps:
    """asyncio for uvicorn, whose shutdown waits in steps of 10 ms instead of 0.1 s."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


vars(uvicorn.server)["asyncio"] = _ShortSleeps()


class _Server(uvicorn.Server):
    """uvicorn, which exits when it is asked to, and not up to 0.1 s later."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.asked_to_exit = asyncio.Event()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with anyio.move_on_after(0.1):
                await self.asked_to_exit.wait()


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serves an app with uvicorn on this event loop and yields its URL. Runs its lifespan."""
    options = {"http": "httptools", "log_level": "warning", "lifespan": "auto", **options}
    server = _Server(uvicorn.Config(app, port=0, **options))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started or task.done(), "the server has started")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.asked_to_exit.set()
        with anyio.fail_after(10):
            await task


@asynccontextmanager
async def client_of(app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serves an app like serving() and yields an httpx client for it."""
    async with serving(app, **options) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def until(holds: Callable[[], Any], what: str, seconds: float = 5) -> None:
    """Waits until `holds()` is true; `what` names that state in words.

    Checks after 1 ms, then less often, at last every 20 ms: checks cost others time, too. Raises
    AssertionError after `seconds`.
    """
    deadline, pause = anyio.current_time() + seconds, 0.001
    while not holds():
        assert anyio.current_time() < deadline, f"not reached in {seconds:g} s: {what}"
        await asyncio.sleep(pause)
        pause = min(pause * 1.1, 0.02)


async def every_event(
    client: httpx.AsyncClient, url: str, last_event_id: str | None = None, **options: Any
) -> list[ServerSentEvent]:
    """Reads a stream to its end and returns its events as httpx-sse parses them."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with anyio.fail_after(20):
        async with aconnect_sse(
            client, options.pop("method", "GET"), url, headers=headers, **options
        ) as stream:
            stream.response.raise_for_status()
            return [event async for event in stream.aiter_sse()]


class Connection:
    """A raw HTTP/1.1 connection that keeps every byte it has received."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    @property
    def head(self) -> str:
        """The status line and the headers, in lower case."""
        return self.received.partition(b"\r\n\r\n")[0].decode().lower()

    @property
    def body(self) -> bytes:
        """The body without the chunked coding, up to the last complete chunk."""
        return dechunked(self.received.partition(b"\r\n\r\n")[2])

    @property
    def run(self) -> str:
        """The id of the run, from Content-Location."""
        found = re.search(r"/runs/([\w-]{22})", self.received.decode(errors="replace"))
        assert found, self.received
        return found[1]

    @property
    def terminated(self) -> bool:
        """Whether the server has completed the response."""
        return self.received.endswith(b"0\r\n\r\n")

    async def until(
        self, holds: Callable[["Connection"], Any], what: str, seconds: float = 5
    ) -> None:
        """Reads until `holds(self)` is true; `what` names that state in words.

        Raises AssertionError after `seconds`, or if the connection ends first.
        """
        try:
            with anyio.fail_after(seconds):
                while not holds(self):
                    data = await self.reader.read(65536)
                    assert data, f"the connection ended before: {what}; received {self.received!r}"
                    self.received += data
        except TimeoutError:
            raise AssertionError(
                f"not reached in {seconds:g} s: {what}; received {self.received!r}"
            ) from None

    async def to_the_end(self, seconds: float = 5) -> None:
        """Reads until the server closes the connection. Raises AssertionError after `seconds`."""
        try:
            with anyio.fail_after(seconds):
                while data := await self.reader.read(65536):
                    self.received += data
        except TimeoutError:
            raise AssertionError(
                f"not reached in {seconds:g} s: the end of the connection; "
                f"received {self.received!r}"
            ) from None

    def abort(self) -> None:
        """Closes the connection at once, without sending what is buffered."""
        self.writer.transport.abort()


def dechunked(data: bytes) -> bytes:
    """Removes the chunked coding (RFC 9112, section 7.1) from the complete chunks of `data`."""
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
    """Sends a request over a new socket and yields the connection.

    `headers` are lines that end with CRLF; `receive_buffer` is the size of SO_RCVBUF in bytes.
    """
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


def retry_of(response: httpx.Response) -> int:
    """The milliseconds after which an EventSource reconnects, in an answer with nothing else."""
    found = re.fullmatch(r"retry: (\d+)\n", response.text)
    assert found, response.text
    return int(found[1])


def free_port() -> int:
    """A TCP port for a server that starts later.

    Nothing else gets it until then: systems give clients higher ports, and each worker of pytest
    has a range of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1000 * (worker % 12)
    for port in random.sample(range(first, first + 1000), 1000):
        with suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port from {first} to {first + 999} is free")


@contextmanager
def server_process(
    port: int | socket.socket, *arguments: str, app: str = "app:app", **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """Runs uvicorn in a separate process: yields once it listens, and kills it on exit.

    Several processes can listen together on one socket, given in place of a port.
    """
    fd = [port.fileno()] if isinstance(port, socket.socket) else []
    listen = ["--fd", str(fd[0])] if fd else ["--port", str(port)]
    command = ["uvicorn", app, *listen, *arguments]
    with uvicorn_process(command, pass_fds=fd, **environ) as process:
        yield process


@contextmanager
def uvicorn_process(
    command: list[str],
    *,
    ready: str = "Uvicorn running",
    pass_fds: Sequence[int] = (),
    **environ: str,
) -> Iterator[subprocess.Popen[str]]:
    """Runs `python -m command`, which starts uvicorn or another server; kills it at the end.

    Begins when the process writes a line with `ready` to stderr. Raises AssertionError with its
    log if it ends instead.
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
            if ready in line:
                break
        else:
            raise AssertionError(f"{command[0]} did not start:\n{log}")
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stderr.close()


@contextmanager
def process_group(
    command: Sequence[str | Path], log: Path, folder: Path = ROOT, **environ: str | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a folder, and kills it and its children at the end.

    The file `log` has its output. A variable that is None is removed from the environment.
    """
    variables = {**os.environ, **environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={name: value for name, value in variables.items() if value is not None},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_group(process)


async def served(
    process: subprocess.Popen[bytes], log: Path, port: int, workers: int = 1, seconds: float = 30
) -> None:
    """Waits until all workers of uvicorn have started, by their log, and one of them listens.

    A worker says that it has started before it listens. Raises AssertionError if the process ends.
    """

    def serves() -> bool:
        text = log.read_text()
        assert process.poll() is None, text
        if text.count("Application startup complete") < workers:
            return False
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    await until(serves, f"{workers} workers serve", seconds)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the processes of a process_group at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def listening() -> tuple[socket.socket, str]:
    """A listening socket for server processes, and its URL."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(1000)
    return sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


async def exit_of(process: subprocess.Popen[Any], seconds: float) -> int:
    """Waits for a process to end, for at most `seconds`, and returns its exit code."""
    await until(lambda: process.poll() is not None, "the process has ended", seconds)
    return int(process.returncode)
