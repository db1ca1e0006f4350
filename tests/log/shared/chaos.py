"""A simulation of many failures at once, all from one random seed.

Viewers connect, disconnect and stop runs; workers are killed, one or all at once, and paused; the
store has faults of its own. At the end it checks that each viewer got each event once and in order.
`make chaos` runs it for a minute, test_chaos.py for some seconds.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import anyio
from anyio import to_thread

from tests.log.shared.workers import MORTAL
from tests.support.servers import ROOT, listening, until
from tests.support.stores import remains
from tests.support.valkey import running_valkey

SOURCES = f"streams.sources:counter,streams.sources:clock,{MORTAL}"
FAULTS = ("kill", "kill", "kill all", "pause")
SILENCE_SECONDS = 5.0
"""A viewer closes a connection that is silent for this long, and connects again."""
RETAIN, RETAIN_LONG = 12, 30
"""Longer than a viewer is away: it may wait for silence twice, and while all workers start. 200
viewers keep the processor so busy that this takes a while."""

FAULT_SECONDS = 180.0
"""On a busy machine, it takes up to so much longer until all has happened that has to."""

VIEWER_SECONDS = 90.0
"""After the last fault, every viewer is done in this time."""

StoreFaults = dict[str, Callable[[Random], Awaitable[None]]]


@contextmanager
def redis_store() -> Iterator[tuple[str, StoreFaults]]:
    """Runs Valkey. Yields its URL and the faults that it can have."""
    with running_valkey() as valkey:

        async def pause(random: Random) -> None:
            valkey.pause()
            await asyncio.sleep(random.uniform(0.2, 3))
            valkey.unpause()

        async def restart(random: Random) -> None:
            valkey.kill()
            await asyncio.sleep(random.uniform(0, 1))
            await to_thread.run_sync(valkey.start)

        yield valkey.url, {"pause valkey": pause, "restart valkey": restart}


@contextmanager
def sqlite_store() -> Iterator[tuple[str, StoreFaults]]:
    """Makes a folder for a SQLite file. Yields its URL and the faults that it can have."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/runs.db"

        async def lock(random: Random) -> None:
            with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(random.uniform(0.2, 3))
                connection.execute("COMMIT")

        async def back_up(random: Random) -> None:
            def back_up() -> None:
                with closing(sqlite3.connect(path)) as source:
                    with closing(sqlite3.connect(f"{directory}/backup.db")) as target:
                        source.backup(target)
                        assert target.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

            await to_thread.run_sync(back_up)

        yield f"sqlite:{path}?lease=2.5", {"lock the file": lock, "back up": back_up}


STORES: dict[str, Callable[[], AbstractContextManager[tuple[str, StoreFaults]]]] = {
    "redis": redis_store,
    "sqlite": sqlite_store,
}


class Worker:
    """A server process on the socket that all workers share."""

    def __init__(
        self, number: int, sock: socket.socket, url: str, directory: str, retain: int
    ) -> None:
        self.log = Path(directory) / f"worker-{number}.log"
        self._sock = sock
        self._environ = {"STREAMS_LOG": url, "STREAMS_SOURCES": SOURCES}
        self._environ |= {"STREAMS_RETAIN": str(retain), "STREAMS_RETRY": "0,0.2"}
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    async def start(self) -> None:
        self._spawn()
        await until(self._serves, "the worker serves", seconds=60)

    def _serves(self) -> bool:
        log = self.log.read_text()
        assert self._process is not None
        assert self._process.poll() is None, log
        return log.count("Uvicorn running") >= self.starts

    def _spawn(self) -> None:
        fd = self._sock.fileno()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "app:app", "--fd", str(fd)],
                cwd=ROOT,
                env={**os.environ, **self._environ},
                stderr=log,
                stdout=log,
                pass_fds=[fd],
            )
        self.starts += 1

    def send(self, signal_: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signal_)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> None:
        assert self._process is not None
        await to_thread.run_sync(self._process.wait)


class Viewer:
    """Reads one run over any number of connections, and records what it gets.

    `given_up` is the status after which an EventSource does not connect again, and `why` the
    server's reason, with the seconds since the viewer had its last event.
    """

    def __init__(self, random: Random, address: tuple[str, int], path: str) -> None:
        self.path = path
        self.numbers: list[int] = []
        self.ids: list[str] = []
        self.end: dict[str, Any] | None = None
        self.gaps = 0
        self.given_up = ""
        self.why = ""
        self._last_event = anyio.current_time()
        self._random = random
        self._address = address

    @property
    def count(self) -> int:
        """How many numbers a restartable run has; 0 if the run is not restartable."""
        count = re.search(r"/counter\?count=(\d+)", self.path)
        return int(count[1]) if count else 0

    @property
    def run(self) -> str | None:
        return self.ids[-1].partition(".")[0] if self.ids else None

    async def watch(self, over: asyncio.Event) -> None:
        while self.end is None and not self.given_up:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._connect(over)
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def _connect(self, over: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            last = f"Last-Event-ID: {self.ids[-1]}\r\n" if self.ids else ""
            writer.write(f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
            async with asyncio.timeout(SILENCE_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split()[1])
            if status in (204, 404, 410):
                self.given_up = str(status)
                away = anyio.current_time() - self._last_event
                self.why = f"after {away:.1f} s: {(await reader.read(1000)).decode()}"
            if status != 200:
                return
            stay = 60.0 if over.is_set() else self._random.expovariate(1 / 2)
            with anyio.move_on_after(stay):
                await self._read(reader)
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        body = b""
        while self.end is None:
            async with asyncio.timeout(SILENCE_SECONDS):
                size = int((await reader.readuntil(b"\r\n")).strip(), 16)
                body += (await reader.readexactly(size + 2))[:-2]
            if not size:
                return
            *blocks, body = body.split(b"\n\n")
            for block in blocks:
                self._record(block.decode())

    def _record(self, block: str) -> None:
        self._last_event = anyio.current_time()
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        data = json.loads(fields["data"])
        if "id" in fields:
            self.ids.append(fields["id"])
        match fields.get("event"):
            case "end":
                self.end = data
            case "gap":
                self.gaps += 1
            case None if "number" in (data if isinstance(data, dict) else {}):
                self.numbers.append(data["number"])


class Chaos:
    """The simulation. It lasts `seconds`, and longer until every kind of fault has happened."""

    def __init__(self, store: str, seed: int, seconds: float, viewers: int, workers: int) -> None:
        self.store = store
        self.random = Random(seed)
        self.seconds = seconds
        self.viewer_count = viewers
        self.viewers: list[Viewer] = []
        self.workers: list[Worker] = []
        self.worker_count = workers
        self.store_faults: StoreFaults = {}
        self.faults: dict[str, int] = {}
        self.over = asyncio.Event()

    async def run(self) -> str:
        sock, _ = listening()
        with sock, tempfile.TemporaryDirectory() as directory, STORES[self.store]() as store:
            address = sock.getsockname()
            url, self.store_faults = store
            retain = RETAIN if self.viewer_count < 100 else RETAIN_LONG
            numbers = range(self.worker_count)
            self.workers = [Worker(n, sock, url, directory, retain) for n in numbers]
            try:
                await self._start()
                try:
                    limit = asyncio.timeout(self.seconds + FAULT_SECONDS)
                    async with limit, asyncio.TaskGroup() as group:
                        for _ in range(self.viewer_count):
                            group.create_task(self._view(address))
                        await self._cause_faults()
                        limit.reschedule(asyncio.get_running_loop().time() + VIEWER_SECONDS)
                except TimeoutError:
                    what = "every viewer is done" if self.over.is_set() else "all has happened"
                    raise AssertionError(f"not reached in time: {what}; {self._report()}") from None
                self._check()
                await until(lambda: not remains(url), "the store holds nothing of a run", 60)
            finally:
                for worker in self.workers:
                    worker.send(signal.SIGKILL)
                    await worker.ended()
        return self._report()

    async def _start(self) -> None:
        async with asyncio.TaskGroup() as group:
            for worker in self.workers:
                group.create_task(worker.start())

    async def _view(self, address: tuple[str, int]) -> None:
        """Views one run after another until the faults are over."""
        random = Random(self.random.random())
        longest = min(150, int(self.seconds * 10))
        await asyncio.sleep(random.uniform(0, 1))
        while not self.over.is_set():
            path = random.choice(
                [
                    f"/streams/counter?count={random.randint(20, longest)}&interval=0.05",
                    f"/streams/counter?count={random.randint(20, longest)}&interval=0.05",
                    "/streams/mortal?count=80",
                    *[f"/runs/{viewer.run}" for viewer in self.viewers[-3:] if viewer.run],
                ]
            )
            viewer = Viewer(random, address, path)
            self.viewers.append(viewer)
            if random.random() < 0.2:
                async with asyncio.TaskGroup() as group:
                    group.create_task(viewer.watch(self.over))
                    group.create_task(self._stop(viewer, random, address))
            else:
                await viewer.watch(self.over)

    async def _stop(self, viewer: Viewer, random: Random, address: tuple[str, int]) -> None:
        await asyncio.sleep(random.uniform(0.5, 3))
        if viewer.run is None or viewer.end is not None:
            return
        self._count("stop")
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(
                    f"DELETE /runs/{viewer.run} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                )
                async with asyncio.timeout(SILENCE_SECONDS):
                    await reader.readuntil(b"\r\n")
            finally:
                writer.transport.abort()

    async def _cause_faults(self) -> None:
        random = Random(self.random.random())
        deadline = anyio.current_time() + self.seconds
        faults: list[str] = []
        while anyio.current_time() < deadline or not self._complete:
            await asyncio.sleep(random.uniform(0.1, 1.5))
            if not faults:
                faults = [*FAULTS, *self.store_faults]
                random.shuffle(faults)
            fault = faults.pop()
            self._count(fault)
            await self._cause(fault, random)
        self.over.set()

    @property
    def _complete(self) -> bool:
        """Whether every kind of fault has happened, and viewers have seen both kinds of end."""
        ends = {viewer.end["status"] for viewer in self.viewers if viewer.end}
        every = {*FAULTS, *self.store_faults, "stop"}
        return self.faults.keys() >= every and ends >= {"completed", "cancelled"}

    async def _cause(self, fault: str, random: Random) -> None:
        worker = random.choice(self.workers)
        match fault:
            case "kill":
                await worker.kill()
                await worker.start()
            case "kill all":
                for worker in self.workers:
                    worker.send(signal.SIGKILL)
                for worker in self.workers:
                    await worker.ended()
                await self._start()
            case "pause":
                worker.send(signal.SIGSTOP)
                await asyncio.sleep(random.uniform(0.5, 5))
                worker.send(signal.SIGCONT)
            case _:
                await self.store_faults[fault](random)

    def _count(self, fault: str) -> None:
        self.faults[fault] = self.faults.get(fault, 0) + 1

    def _check(self) -> None:
        counts = {viewer.run: viewer.count for viewer in self.viewers if viewer.count}
        for viewer in self.viewers:
            what = (
                f"{viewer.path} {viewer.ids[-1:]} {viewer.end} {viewer.given_up} {viewer.why} "
                f"{viewer.numbers}"
            )
            assert not viewer.gaps, what
            assert viewer.numbers == list(range(len(viewer.numbers))), what
            ids = [int(id_.rpartition(".")[2]) for id_ in viewer.ids]
            assert ids == list(range(len(ids))), f"{what} {viewer.ids}"
            end = viewer.end or {}
            match end.get("status"):
                case "failed":
                    assert end["error"]["type"] == "ProducerLost", what
                    assert viewer.run not in counts, what
                case "completed":
                    assert len(viewer.numbers) == counts.get(viewer.run, 80), what
                case None if viewer.count:
                    assert viewer.given_up == "204", what
                    assert len(viewer.numbers) == viewer.count, what
        for worker in self.workers:
            log = worker.log.read_text()
            assert "Traceback" not in log, log

    def _report(self) -> str:
        ends: dict[str, int] = {}
        for viewer in self.viewers:
            end = viewer.end["status"] if viewer.end else viewer.given_up
            ends[end] = ends.get(end, 0) + 1
        numbers = sum(len(viewer.numbers) for viewer in self.viewers)
        return f"{len(self.viewers)} views, {numbers} numbers, ends {ends}, faults {self.faults}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=STORES, help="default: one after the other")
    parser.add_argument("--seed", type=int, default=Random().randint(0, 10**6))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args(arguments)
    sys.stdout.write(f"seed {given.seed}\n")
    for store in [given.log] if given.log else STORES:
        chaos = Chaos(store, given.seed, given.seconds, given.viewers, given.workers)
        sys.stdout.write(f"{store}: {asyncio.run(chaos.run())}\n")


if __name__ == "__main__":  # pragma: no cover
    main()
