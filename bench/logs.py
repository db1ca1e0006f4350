"""Compares the event log in SQLite and in Valkey with the one in memory.

The first table shows what an event costs in the worker and in Valkey, and how late it arrives. The
second shows what it costs to resume a reader and to keep a run, how long workers lock the file of
a SQLite log, and how large the file becomes in a day. Run it with `make bench-logs`, or
`python -m bench.logs --rounds 1 private locked` for some of it.

Invariants:

1. Each case starts new workers with an empty log on disk. Valkey writes its append-only file.
2. Every reader must receive every event.
3. The workers share one core; Valkey and the load generator share the other. So costs are CPU time
   of all threads of a process, and rates are per second of CPU time.
4. In a round, the logs of a case run one after another; `÷ memory` compares within a round.
"""

import argparse
import asyncio
import gc
import json
import os
import re
import secrets
import sqlite3
import statistics
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice, pairwise
from tempfile import TemporaryDirectory

import uvloop

from bench.load import AT_ONCE, Reader, all_ended, go, opened, stream
from bench.run import allow_connections, percentile
from bench.server import LOAD_CORE, Server
from streams.event import frame
from streams.log import Limits, RunInfo, Status
from streams.log.sqlite import SQLiteStore
from streams.log.store import Append
from tests.support.valkey import Valkey, running_valkey

APP = "bench.peers.stamped:app"
LOCKED_APP = "bench.peers.locked:app"
STAMP = re.compile(rb'"at":(\d+),')
LOGS = ("memory", "SQLite", "Valkey")
SHARED = LOGS[1:]  # A log in memory is of one worker.

SECONDS = 4
FLOOD = 200_000  # events of a run without a rate
RECONNECTS = 400
RUNS_KEPT = 500  # runs whose memory is measured
LONG_RUN = 200  # events of a long run

DAY_RUNS = 86_400  # one each second
DAY_RATE = 300  # runs a second: a day in five minutes
DAY_EVENTS = 20
DAY_BATCH = 32  # runs at the same time
DAY_RETAIN = 1.0
DAY_DATA = b'{"at":123456789012345,"number":12,"content":" and so on"}'


class Viewer(Reader):
    """A reader that records how late each event arrives, in ms."""

    def __init__(self) -> None:
        super().__init__()
        self.late = array("d")
        self._cut = b""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        super().data_received(data)
        data, end = self._cut + data, 0
        for stamp in STAMP.finditer(data):
            self.late.append((now - int(stamp[1])) / 1e6)
            end = stamp.end()
        self._cut = data[max(end, len(data) - 32) :]

    @property
    def run(self) -> str:
        return self.head.partition(b"/runs/")[2][:22].decode()


@dataclass(frozen=True)
class Case:
    """Some rows of the first table, one for each log.

    `rate` is in events per second of one run; 0 means as fast as possible. The readers share one
    run, or have one each. With `elsewhere`, one worker produces all runs and the other serves all
    readers; else the workers have equal shares of the readers.
    """

    what: str
    rate: int
    readers: int
    logs: Sequence[str] = LOGS
    workers: int = 1
    elsewhere: bool = False
    shared: bool = False

    @property
    def events(self) -> int:
        return SECONDS * self.rate or FLOOD

    @property
    def path(self) -> str:
        interval = 1 / self.rate if self.rate else 0
        source = "shared" if self.shared else "private"
        return f"/streams/{source}?count={self.events}&interval={interval}&gated=1"


CASES = [
    Case("flood", 0, 1),
    Case("flood", 0, 1, SHARED, workers=2, elsewhere=True),
    Case("one", 50, 1),
    Case("one", 50, 1, SHARED, workers=2, elsewhere=True),
    Case("private", 50, 100),
    Case("private", 50, 100, SHARED, workers=2),
    Case("private", 50, 100, SHARED, workers=4),
    Case("private", 50, 100, SHARED, workers=2, elsewhere=True),
    Case("private", 50, 50),
    Case("private", 50, 200),
    Case("private", 50, 400),
    Case("shared", 100, 400, shared=True),
    Case("shared", 100, 400, SHARED, workers=2, shared=True),
    Case("shared", 100, 40, SHARED, workers=2, shared=True),
    Case("shared", 100, 4, SHARED, workers=2, shared=True),
    Case("shared", 10, 2000, shared=True),
]


@dataclass(frozen=True)
class Fleet:
    """Workers, each on its own port, and the log that they share."""

    servers: list[Server]
    valkey: Valkey | None
    database: str


@asynccontextmanager
async def fleet(log: str, workers: int = 1, app: str = APP) -> AsyncIterator[Fleet]:
    """Starts workers with an empty log of this kind."""
    async with AsyncExitStack() as stack:
        database = f"{stack.enter_context(TemporaryDirectory())}/runs.db"
        valkey, urls = None, {"memory": "", "SQLite": f"sqlite:{database}"}
        if log == "Valkey":
            valkey = stack.enter_context(running_valkey("--appendfsync", "everysec"))
            urls[log] = valkey.url
        servers = [
            await stack.enter_async_context(Server(app, STREAMS_LOG=urls[log]))
            for _ in range(workers)
        ]
        for server in servers:
            await stream(server.port, "/streams/private?count=300", 300)
        yield Fleet(servers, valkey, database)


@dataclass(frozen=True)
class Traffic:
    """Valkey's work: seconds of CPU, calls from clients, bytes in and out."""

    cpu: float = 0.0
    calls: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, valkey: Valkey | None) -> "Traffic":
        if valkey is None:
            return cls()
        info = valkey.client.info("everything")
        calls = [
            info.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "xread")
        ]
        cpu = info["used_cpu_user"] + info["used_cpu_sys"]
        return cls(cpu, sum(calls), info["total_net_input_bytes"] + info["total_net_output_bytes"])

    def since(self, before: "Traffic") -> "Traffic":
        return Traffic(self.cpu - before.cpu, self.calls - before.calls, self.bytes - before.bytes)


async def viewers(requests: Sequence[tuple[int, str, str | None]]) -> list[Viewer]:
    """Opens a reader for each port, path and Last-Event-ID.

    Returns when each has received the head of its response.
    """
    loop = asyncio.get_running_loop()
    found: list[Viewer] = []

    async def view(port: int, path: str, last: str | None) -> Viewer:
        _, viewer = await loop.create_connection(Viewer, "127.0.0.1", port)
        viewer.ask(path, last)
        await viewer.answered
        return viewer

    for first in range(0, len(requests), AT_ONCE):
        batch = requests[first : first + AT_ONCE]
        found += await asyncio.gather(*(view(*request) for request in batch))
    return found


async def viewers_of(case: Case, servers: list[Server]) -> list[Viewer]:
    """Opens the readers of a case on the workers where they belong."""
    if not case.elsewhere:
        ports = islice(cycle(server.port for server in servers), case.readers)
        return await viewers([(port, case.path, None) for port in ports])
    starting = await viewers([(servers[0].port, case.path, None)] * case.readers)
    found = await viewers([(servers[1].port, f"/runs/{one.run}", None) for one in starting])
    for viewer in starting:
        viewer.close()
    return found


async def measure(case: Case, log: str) -> dict[str, float]:
    """Runs a case once; returns the figures of its row."""
    async with fleet(log, case.workers) as found:
        open_ = await viewers_of(case, found.servers)
        before = Traffic.of(found.valkey)
        with no_garbage_collection(), ExitStack() as stack:
            costs = [stack.enter_context(server.measured()) for server in found.servers]
            for server in found.servers:
                await go(server.port)
            await all_ended(open_, case.events, 60)
        traffic = Traffic.of(found.valkey).since(before)
    delivered = case.readers * case.events
    appended = case.events if case.shared else delivered
    cpu = sum(cost.cpu for cost in costs)
    late = [ms for viewer in open_ for ms in viewer.late] if case.rate else []
    figures = {"µs": cpu / delivered * 1e6, "events/s of a core": delivered / cpu}
    figures |= {"core": cpu / costs[0].wall * 100, "delivered/s": delivered / costs[0].wall}
    if late:
        figures |= {"p50 ms": percentile(late, 50), "p99 ms": percentile(late, 99)}
    if found.valkey:
        figures |= {"Valkey µs": traffic.cpu / appended * 1e6, "calls": traffic.calls / appended}
        figures |= {"bytes": traffic.bytes / appended}
    return figures | {"load": max(cost.load_share for cost in costs) * 100}


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


FORMATS = {
    "µs": "{:.1f}",
    "÷ memory": "{:.2f}",
    "events/s of a core": "{:,.0f}",
    "core": "{:.0f}%",
    "delivered/s": "{:,.0f}",
    "p50 ms": "{:.1f}",
    "p99 ms": "{:.1f}",
    "Valkey µs": "{:.1f}",
    "calls": "{:.2f}",
    "bytes": "{:,.0f}",
    "load": "{:.0f}%",
}


def rows(case: Case, rounds: int) -> Iterator[str]:
    """Runs a case with each log in each round; yields its rows, the medians of the rounds."""
    found: dict[str, list[dict[str, float]]] = {log: [] for log in case.logs}
    for _ in range(rounds):
        for log, figures in found.items():
            figures.append(asyncio.run(measure(case, log)))
            if "memory" in found:
                figures[-1]["÷ memory"] = figures[-1]["µs"] / found["memory"][-1]["µs"]
    workers = f"{case.workers}{', readers on the other' if case.elsewhere else ''}"
    for log, figures in found.items():
        cells = [case.what, str(case.rate or "max"), str(case.readers), workers, log]
        for name, form in FORMATS.items():
            values = [each[name] for each in figures if name in each]
            cells.append(form.format(statistics.median(values)) if values else "")
        yield " | ".join(cells)


async def reconnecting(log: str, shared: bool, other: bool) -> str:
    """Measures the cost of resuming many readers whose connections broke at the same time."""
    path = f"/streams/{'shared' if shared else 'private'}?count=1000&interval=1"
    async with fleet(log, 2 if other else 1) as found:
        first, last = found.servers[0].port, found.servers[-1]
        open_ = await viewers([(first, path, None)] * RECONNECTS)
        async with asyncio.timeout(20):
            while min(viewer.events for viewer in open_) < 2:
                await asyncio.sleep(0.05)
        for viewer in open_:
            viewer.close()
        before = Traffic.of(found.valkey)
        with last.measured() as cost:
            requests = [(last.port, f"/runs/{one.run}", f"{one.run}.1") for one in open_]
            resumed = await viewers(requests)
            async with asyncio.timeout(20):
                while not all(viewer.events for viewer in resumed):
                    await asyncio.sleep(0.001)
        traffic = Traffic.of(found.valkey).since(before)
    what = f"resume, {'shared' if shared else 'private'}, {'another' if other else 'same'} worker"
    per_core = f"{RECONNECTS / cost.cpu:,.0f} per second of CPU"
    valkeys = f"; Valkey {traffic.cpu / RECONNECTS * 1e6:.0f} µs" if found.valkey else ""
    return f"{what} | {log} | {cost.cpu / RECONNECTS * 1e3:.2f} ms of CPU; {per_core}{valkeys}"


def stored(found: Fleet) -> int:
    """The bytes that the log takes outside the workers."""
    if found.valkey:
        return int(found.valkey.client.info("memory")["used_memory"])
    with closing(sqlite3.connect(found.database)) as db:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int((pages - free) * size)


async def kept(log: str) -> AsyncIterator[str]:
    """Measures what a finished run takes in the log."""
    async with fleet(log) as found:
        used = [stored(found)]
        for count in (0, LONG_RUN):
            for _ in range(RUNS_KEPT // 50):
                path = f"/streams/private?count={count}&interval=0.01"
                frames = await opened(found.servers[0].port, path, 50)
                await all_ended(frames, count, 60)
            used.append(stored(found))
    short, long = ((b - a) / RUNS_KEPT for a, b in pairwise(used))
    each = (long - short) / LONG_RUN
    yield f"a run with only `start` and `end` | {log} | {short:,.0f} bytes"
    yield f"each event of {frames[0].bytes / LONG_RUN:.0f} bytes | {log} | {each:.0f} bytes"


async def held(log: str) -> str:
    """Measures what an open run takes in the worker."""
    async with fleet(log) as found:
        (server,) = found.servers
        path = "/streams/private?count=1&gated=1"
        await opened(server.port, path, 50)
        await asyncio.sleep(0.5)
        before = server.memory()
        await opened(server.port, path, RUNS_KEPT)
        await asyncio.sleep(0.5)
        kib = (server.memory() - before) / RUNS_KEPT / 1024
    return f"an open run with one reader | {log} | {kib:.1f} KiB in the worker"


async def locked(workers: int, readers: int) -> str:
    """Measures for how long workers lock the file: what they cannot do at the same time."""
    case = Case("locked", 50, readers)
    async with fleet("SQLite", workers, LOCKED_APP) as found:
        open_ = await viewers_of(case, found.servers)
        for server in found.servers:
            await go(server.port)
        await all_ended(open_, case.events, 60)
        each = [json.loads(await get(server.port, "/locked")) for server in found.servers]
    total = {name: sum(one[name] for one in each) for name in each[0]}
    events = case.events * readers
    commits, checkpoints = (
        total[f"{name}_seconds"] / events * 1e6 for name in ("commit", "checkpoint")
    )
    return (
        f"the file is locked, {workers} workers, {readers} private runs | SQLite | "
        f"{commits + checkpoints:.1f} µs an event: commits {commits:.1f} "
        f"({events / total['commits']:.0f} events each), checkpoints {checkpoints:.1f} "
        f"({total['checkpoint_seconds'] / max(total['checkpoints'], 1) * 1e3:.1f} ms each)"
    )


async def get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    return response.partition(b"\r\n\r\n")[2]


async def day() -> str:
    """Measures how large the file of a SQLite log becomes in a day of runs that expire."""
    sizes: list[int] = []
    with TemporaryDirectory() as directory:
        database = f"{directory}/runs.db"
        store = SQLiteStore(f"sqlite:{database}")
        await store.open("worker")
        begin = time.monotonic()
        limits = Limits(2**20, DAY_RETAIN)
        while len(sizes) * DAY_BATCH < DAY_RUNS:
            names = [secrets.token_urlsafe(16) for _ in range(DAY_BATCH)]
            for name in names:
                await store.create(
                    RunInfo(run=name, source="day", started=datetime.now(UTC)), limits
                )
            for number in range(DAY_EVENTS):
                status: Status | None = "completed" if number == DAY_EVENTS - 1 else None
                frames = [frame(b"x" * 22, number, None, DAY_DATA)]
                await store.append([Append(name, number, frames, None, status) for name in names])
                await asyncio.sleep(0)
            early = begin + len(sizes) * DAY_BATCH / DAY_RATE - time.monotonic()
            await asyncio.sleep(max(early, 0))
            sizes.append(sum(os.stat(database + end).st_size for end in ("", "-wal")))
        seconds = time.monotonic() - begin
        await store.aclose()
    written = DAY_RUNS * DAY_EVENTS * len(frames[0])
    tenths = [max(sizes[len(sizes) * n // 10 : len(sizes) * (n + 1) // 10]) for n in range(10)]
    rate = DAY_RUNS / seconds
    return (
        f"{DAY_RUNS:,} runs of {DAY_EVENTS} events, retained for {DAY_RETAIN} s, {rate:.0f} runs/s "
        f"| SQLite | at most, in each tenth: {', '.join(f'{n / 1e6:.1f}' for n in tenths)} MB; "
        f"{written / 1e6:,.0f} MB written, {rate * DAY_RETAIN * written / DAY_RUNS / 1e6:.1f} MB "
        "retained"
    )


TITLES = f"case | events/s of a run | readers | workers | log | {' | '.join(FORMATS)}"


async def second_table(name: str) -> AsyncIterator[str]:
    """The lines of a part of the second table."""
    if name == "resume":
        for shared, other, logs in [
            (False, False, LOGS),
            (False, True, SHARED),
            (True, True, SHARED),
        ]:
            for log in logs:
                yield await reconnecting(log, shared, other)
    if name == "kept":
        for log in SHARED:
            async for line in kept(log):
                yield line
        for log in LOGS:
            yield await held(log)
    if name == "locked":
        for workers, readers in LOCKED:
            yield await locked(workers, readers)
    if name == "day":
        yield await day()


LOCKED = [(1, 100), (2, 100), (4, 100), (1, 400), (1, 800), (4, 800), (4, 1600)]
PARTS = ("resume", "kept", "locked", "day")


async def print_part(name: str) -> None:
    async for line in second_table(name):
        print(f"| {line} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("names", nargs="*", metavar="case")
    given = parser.parse_args()
    allow_connections()
    os.sched_setaffinity(0, {LOAD_CORE})
    uvloop.install()
    print(f"| {TITLES} |\n|{'---|' * (TITLES.count('|') + 1)}")
    for case in CASES:
        if case.what in (given.names or [case.what]):
            for row in rows(case, given.rounds):
                print(f"| {row} |", flush=True)
    print("\n| what | log | |\n|---|---|---|")
    for name in PARTS:
        if name in (given.names or PARTS):
            asyncio.run(print_part(name))


if __name__ == "__main__":
    main()
