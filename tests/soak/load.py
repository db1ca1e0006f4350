"""What the soak test does to its workers: viewers who read, come and go, stall, and lie."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import anyio

from tests.log.shared.chaos import Viewer

SHARE = {"honest": 5, "goes": 2, "stalls": 1, "lies": 2}
"""How many of ten viewers do what."""

ANSWER_SECONDS = 60.0
"""Every request is answered in this time, on a busy machine, unless its worker is killed."""

PATHS = [
    "/streams/counter?count=50&interval=0.02",
    "/streams/counter?count=300&interval=0",
    "/streams/clock",
    "/streams/clock?interval=0.05",
    "/streams/tokens?tokens_per_second=500",
    "/streams/tokens?drop_after=3",
    "/streams/tokens?status=429",
    "/",
    "/health",
    "/streams",
    "/page/event-stream.js",
]


def asked(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


ABANDONED = [
    b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 70000\r\n\r\n{"model":"mock"%b' % (path, size * b" ")
    for path in (b"/streams/counter", b"/v1/chat/completions", b"/v1/responses")
    for size in (0, 60_000)
]
"""Requests whose body is not complete: their clients leave in the middle of it."""

LIES = [
    ("GET", "/streams/counter?count=-1", ""),
    ("GET", "/streams/counter?nonsense=1", ""),
    ("GET", "/streams/nothing", ""),
    ("GET", "/runs/nothing", ""),
    ("GET", "/runs/AAAAAAAAAAAAAAAAAAAAAA", "Last-Event-ID: AAAAAAAAAAAAAAAAAAAAAA.1\r\n"),
    ("GET", "/streams/counter", "Last-Event-ID: AAAAAAAAAAAAAAAAAAAAAA.9007199254740993\r\n"),
    ("GET", "/streams/counter", "Last-Event-ID: \r\n"),
    ("GET", "/streams/clock", "Last-Event-ID: AAAAAAAAAAAAAAAAAAAAAA.7\r\nAccept: text/html\r\n"),
    ("GET", "/streams/counter", "Accept: image/png\r\n"),
    ("GET", "/streams/counter", "Idempotency-Key: short\r\n"),
    ("GET", "/runs?owner=somebody", ""),
    ("DELETE", "/runs/AAAAAAAAAAAAAAAAAAAAAA", ""),
    ("DELETE", "/streams/counter", ""),
    ("PUT", "/streams/counter", "Content-Length: 0\r\n"),
    ("POST", "/streams/counter", "Content-Length: 0\r\n"),
    ("POST", "/streams/counter", "Content-Length: 4\r\nContent-Type: application/json\r\n\r\n[1,2"),
    ("POST", "/v1/chat/completions", "Content-Length: 2\r\nContent-Type: text/plain\r\n\r\n{}"),
    ("POST", "/topics/none", "Content-Length: 2\r\n\r\n{}"),
    ("HEAD", "/streams/counter", ""),
]

Addresses = list[tuple[str, int]]


class Reader(Viewer):
    """An honest viewer, which connects to any of the workers."""

    def __init__(self, random: Random, addresses: Addresses, path: str) -> None:
        super().__init__(random, addresses[0], path)
        self._addresses = addresses
        self.attempts: list[str] = []
        """How its connections ended, for the report of a failure."""

    async def _connect(self, over: asyncio.Event) -> None:
        # The next one each time: a worker that is killed costs one attempt.
        self._address = self._addresses[len(self.attempts) % len(self._addresses)]
        begun, events = anyio.current_time(), len(self.ids)
        how = "left, or the response has ended"
        try:
            await super()._connect(over)
        except Exception as error:
            how = type(error).__name__
            raise
        finally:
            seconds, read = anyio.current_time() - begun, len(self.ids) - events
            self.attempts.append(f"{begun:.1f} {self._address[1]} {seconds:.1f} s: {read}, {how}")


class Load:
    """Keeps `viewers` viewers busy until `over` is set. `failures` says what none may ever see."""

    def __init__(self, random: Random, addresses: Addresses, longest: int) -> None:
        self.readers: list[Reader] = []
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []
        self.over = asyncio.Event()
        self._random = random
        self._addresses = addresses
        self._longest = longest

    async def run(self, viewers: int, last: float) -> None:
        """Returns when all viewers are done, `last` seconds after `over` at most."""
        kinds = [kind for kind, share in SHARE.items() for _ in range(share)]
        async with asyncio.TaskGroup() as group:
            for number in range(viewers):
                random = Random(self._random.random())
                act = getattr(self, f"_{kinds[number % len(kinds)]}")
                group.create_task(self._repeat(act, random, kinds[number % len(kinds)]))
            await self.over.wait()
            # Those who are not done then wait for something that does not come.
            group.create_task(self._watch(group, last))

    async def _watch(self, group: asyncio.TaskGroup, seconds: float) -> None:
        deadline = anyio.current_time() + seconds
        while waiting := [r for r in self.readers if r.end is None and not r.given_up]:
            assert anyio.current_time() < deadline, f"no end: {[vars(r) for r in waiting[:3]]}"
            await asyncio.sleep(0.1)

    async def _repeat(
        self, act: Callable[[Random], Awaitable[Any]], random: Random, kind: str
    ) -> None:
        await asyncio.sleep(random.uniform(0, 1))
        while not self.over.is_set():
            self.counts[kind] = self.counts.get(kind, 0) + 1
            await act(random)

    async def _honest(self, random: Random) -> None:
        count = random.randint(20, self._longest)
        path = f"/streams/counter?count={count}&interval=0.05"
        reader = Reader(random, self._addresses, path)
        self.readers.append(reader)
        await reader.watch(self.over)

    async def _goes(self, random: Random) -> None:
        """Asks for anything, reads a little, and leaves; often before the first byte."""
        with suppress(OSError):
            reader, writer = await asyncio.open_connection(*random.choice(self._addresses))
            try:
                writer.write(random.choice([*ABANDONED, *map(asked, PATHS)]))
                stay = random.choice([0, 0, 0.05, random.expovariate(1)])
                if stay:
                    with anyio.move_on_after(stay):
                        while await reader.read(4096):
                            pass
            finally:
                writer.transport.abort()
        await asyncio.sleep(random.uniform(0, 2))

    async def _stalls(self, random: Random) -> None:
        """Asks for much, and reads nothing for a while."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with sock, suppress(OSError):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, random.choice(self._addresses))
            request = (
                b"GET /streams/counter?count=1000000&interval=0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            await loop.sock_sendall(sock, request)
            with anyio.move_on_after(random.uniform(3, 20)):
                await self.over.wait()

    async def _lies(self, random: Random) -> None:
        method, path, rest = random.choice(LIES)
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}"
        request += "" if "\r\n\r\n" in rest else "\r\n"
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(*random.choice(self._addresses))
            try:
                writer.write(request.encode())
                async with asyncio.timeout(ANSWER_SECONDS):
                    head = await reader.readuntil(b"\r\n")
                status = int(head.split()[1])
                if status >= 500 and status != 503:
                    self.failures.append(f"{status} for {method} {path} {rest!r}")
            except TimeoutError:
                self.failures.append(f"no answer to {method} {path} {rest!r}")
            finally:
                writer.transport.abort()
        await asyncio.sleep(random.uniform(0, 2))

    def check(self) -> None:
        """Every honest viewer has every event once; nobody got an answer that says: a bug."""
        assert not self.failures, self.failures[:5]
        for reader in self.readers:
            what = f"{reader.path} {reader.ids[-1:]} {reader.end} {reader.given_up} {reader.why}"
            what += f" {reader.attempts[-20:]}"
            assert reader.numbers == list(range(reader.count)), f"{what} {reader.numbers}"
            assert not reader.gaps, what
            assert reader.end == json.loads('{"status":"completed"}'), what
