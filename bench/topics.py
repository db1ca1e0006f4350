"""Measures topics: how fast one process publishes, and how late a viewer gets an event.

The publisher is a process that serves nothing. The viewers are connected to a worker of a server
in another process, which has the same log. With the log in memory, the publisher is a task of the
server's process. Run it with `python -m bench.topics`; `--quick` takes seconds.

Every viewer must receive every event, or a gap that counts it; at a rate, every event. `CPU` is the
publisher's; with the log in memory, also the server's.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from bench.run import percentile
from streams import Streams, topic
from tests.support.servers import Connection, connection, free_port, server_process
from tests.support.valkey import running_valkey

STAMP = re.compile(rb'id: \S+\.(\d+)\ndata: \{"at":(\d+),')
GAP = re.compile(rb'event: gap\ndata: \{"missed":(\d+)\}')

PAYLOAD = "x" * 50


@topic
def measured(name: str) -> None:
    """What the benchmark publishes."""


class App:
    """The server. With the log in memory, /publish?… publishes from its process."""

    def __init__(self) -> None:
        self.streams = Streams([measured], log=os.environ.get("BENCH_LOG") or None)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/publish":
            await self.streams(scope, receive, send)
            return
        seconds, rate, tasks = scope["query_string"].decode().split(",")
        line = await publish(self.streams, float(seconds), float(rate), int(tasks))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": line.encode()})


async def publish(streams: Streams, seconds: float, rate: float, tasks: int) -> str:
    """Publishes for so long, at a rate or (0) as fast as possible. Returns what it did."""
    published, begun, cpu = 0, time.perf_counter(), time.process_time()

    async def one_after_another() -> None:
        nonlocal published
        while (now := time.perf_counter() - begun) < seconds:
            if rate and published > now * rate:
                await asyncio.sleep(1 / rate)
                continue
            published += 1
            at = time.monotonic_ns()
            await streams.publish("measured", {"at": at, "text": PAYLOAD}, name="bench")

    await asyncio.gather(*(one_after_another() for _ in range(tasks)))
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return f"{published} {took} {cpu}"


async def publish_alone(url: str, seconds: float, rate: float, tasks: int) -> None:
    async with Streams([measured], log=url) as streams:
        sys.stdout.write(await publish(streams, seconds, rate, tasks))


@contextmanager
def log_url(kind: str) -> Iterator[str]:
    """The URL of an empty log; empty for one in memory."""
    if kind == "memory":
        yield ""
    elif kind == "SQLite":
        with TemporaryDirectory() as folder:
            yield f"sqlite:{folder}/runs.db"
    else:
        with running_valkey() as valkey:
            yield valkey.url


@asynccontextmanager
async def watched(url: str, viewers: int) -> AsyncIterator[list["Viewer"]]:
    """Viewers of the topic, connected to a server."""
    path = "/streams/measured?name=bench"
    connections = [connection(url, path) for _ in range(viewers)]
    entered = [await each.__aenter__() for each in connections]
    tasks = []
    try:
        for stream in entered:
            await stream.until(lambda stream: b"event: start" in stream.received, "it has begun")
        watching = [Viewer(stream) for stream in entered]
        tasks = [asyncio.create_task(viewer.read()) for viewer in watching]
        yield watching
    finally:
        for task in tasks:
            task.cancel()
        for each in connections:
            await each.__aexit__(None, None, None)


class Viewer:
    """Records how late each event arrives, in ms, and what is missing."""

    def __init__(self, stream: Connection) -> None:
        self.late: list[float] = []
        self.last = 0
        self.missed = 0
        self._stream = stream

    async def read(self) -> None:
        held = b""
        while data := await self._stream.reader.read(2**18):
            now = time.monotonic_ns()
            held += data
            end = 0
            for stamp in STAMP.finditer(held):
                self.last = int(stamp[1])
                self.late.append((now - int(stamp[2])) / 1e6)
                end = stamp.end()
            self.missed += sum(int(gap[1]) for gap in GAP.finditer(held[:end]))
            held = held[end:]


async def publisher(log: str, url: str, arguments: str) -> str:
    """What `publish` returns, in a process of its own, or in the server if that has the log."""
    if not log:
        async with httpx.AsyncClient(timeout=None) as client:
            return (await client.get(f"{url}/publish?{arguments}")).text
    command = (sys.executable, "-m", "bench.topics", "--publish", log, arguments)
    ran = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    printed, _ = await ran.communicate()
    return printed.decode()


def last_is(number: int, viewers: Sequence[Viewer]) -> bool:
    return all(viewer.last >= number for viewer in viewers)


async def case(kind: str, seconds: float, rate: float, tasks: int, viewers: int) -> str:
    """Runs one case in a new log. Returns its row."""
    port = free_port()
    with (
        log_url(kind) as log,
        server_process(port, "--no-access-log", app="bench.topics:app", BENCH_LOG=log),
    ):
        url = f"http://127.0.0.1:{port}"
        async with watched(url, viewers) as watching:
            arguments = f"{seconds},{rate},{tasks}"
            published, took, cpu = map(float, (await publisher(log, url, arguments)).split())
            async with asyncio.timeout(30):
                while not last_is(int(published), watching):
                    await asyncio.sleep(0.01)
            for viewer in watching:
                assert len(viewer.late) + viewer.missed == published, "every event or a gap"
                assert not rate or not viewer.missed
            late = sorted(late for viewer in watching for late in viewer.late)
    delays = f"{percentile(late, 50):.1f} | {percentile(late, 99):.1f}" if late else "- | -"
    row = f"{published / took:,.0f} | {1e6 * cpu / published:.0f} | {delays}"
    return f"| {kind} | {rate or 'as fast as possible'} | {tasks} | {viewers} | {row} |"


async def measure(seconds: float) -> None:
    print("| log | rate | tasks | viewers | events/s | CPU µs/event | p50 ms | p99 ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for rate, tasks, viewers in ((0, 1, 0), (0, 100, 0), (0, 1, 1), (100, 1, 1), (100, 1, 100)):
        for kind in ("memory", "SQLite", "Valkey"):
            print(await case(kind, seconds, rate, tasks, viewers), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="take seconds")
    parser.add_argument("--publish", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.publish:
        url, arguments = given.publish
        seconds, rate, tasks = arguments.split(",")
        asyncio.run(publish_alone(url, float(seconds), float(rate), int(tasks)))
    else:
        asyncio.run(measure(1 if given.quick else 5))


app = App()

if __name__ == "__main__":
    main()
