"""Compares the event log in Valkey with the one in memory.

The first table shows what an event costs in the worker and in Valkey, and how late it arrives. The
second shows what it costs to keep a run and to resume a reader. Run it with `make bench-redis`.

Invariants:

1. Each case starts new workers and a new Valkey, which writes its append-only file to disk.
2. Every reader must receive every event.
3. The workers share one core; Valkey and the load generator share the other. So costs are CPU time,
   and rates are per second of CPU time.
"""

import asyncio
import gc
import os
import re
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import uvloop

from bench.load import AT_ONCE, Reader, all_ended, go, opened, stream
from bench.run import allow_connections, percentile
from bench.server import LOAD_CORE, Cost, Server
from tests.support.valkey import Valkey, running_valkey

APP = "bench.peers.stamped:app"
STAMP = re.compile(rb'"at":(\d+),')

SECONDS = 4
FLOOD = 60_000  # events of a run without a rate
RECONNECTS = 400
RUNS_KEPT = 500  # runs whose memory is measured
LONG_RUN = 200  # events of a long run

HERE, BOTH, OTHER = "one", "two, half each", "two, readers on the other"


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
    """One row of the first table.

    `rate` is in events per second of one run; 0 means as fast as possible. The readers share one
    run, or have one each. `where` says on which workers they read; with `OTHER`, one worker
    produces all runs and the other serves all readers.
    """

    what: str
    rate: int
    readers: int
    log: str = "Valkey"
    where: str = HERE
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
    Case("flood", 0, 1, log="memory"),
    Case("flood", 0, 1),
    Case("flood", 0, 1, where=OTHER),
    Case("one run", 50, 1, log="memory"),
    Case("one run", 50, 1),
    Case("one run", 50, 1, where=OTHER),
    Case("private", 50, 100, log="memory"),
    Case("private", 50, 100),
    Case("private", 50, 100, where=BOTH),
    Case("private", 50, 100, where=OTHER),
    Case("private", 50, 50),
    Case("private", 50, 200),
    Case("private", 50, 400),
    Case("fan-out", 100, 400, log="memory", shared=True),
    Case("fan-out", 100, 400, shared=True),
    Case("fan-out", 100, 400, where=BOTH, shared=True),
    Case("fan-out", 100, 40, where=BOTH, shared=True),
    Case("fan-out", 100, 4, where=BOTH, shared=True),
    Case("fan-out", 10, 2000, shared=True),
]


@asynccontextmanager
async def fleet(log: str, workers: int) -> AsyncIterator[tuple[list[Server], Valkey | None]]:
    """Starts workers, each on its own port, and the Valkey that they share, if any."""
    async with AsyncExitStack() as stack:
        valkey = (
            stack.enter_context(running_valkey("--appendfsync", "everysec"))
            if log == "Valkey"
            else None
        )
        environ = {"STREAMS_LOG": valkey.url} if valkey else {}
        servers = [await stack.enter_async_context(Server(APP, **environ)) for _ in range(workers)]
        for server in servers:
            await stream(server.port, "/streams/private?count=300", 300)
        yield servers, valkey


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
    if case.where != OTHER:
        ports = islice(cycle(server.port for server in servers), case.readers)
        return await viewers([(port, case.path, None) for port in ports])
    starting = await viewers([(servers[0].port, case.path, None)] * case.readers)
    found = await viewers([(servers[1].port, f"/runs/{one.run}", None) for one in starting])
    for viewer in starting:
        viewer.close()
    return found


async def row(case: Case) -> str:
    """Runs a case; returns its row of the table."""
    async with fleet(case.log, 1 if case.where == HERE else 2) as (servers, valkey):
        open_ = await viewers_of(case, servers)
        before = Traffic.of(valkey)
        gc.collect()
        gc.disable()
        with ExitStack() as stack:
            costs = [stack.enter_context(server.measured()) for server in servers]
            for server in servers:
                await go(server.port)
            await all_ended(open_, case.events, 60)
        gc.enable()
        traffic = Traffic.of(valkey).since(before)
    return " | ".join(cells(case, open_, costs, traffic))


def cells(case: Case, open_: list[Viewer], costs: list[Cost], traffic: Traffic) -> list[str]:
    delivered = case.readers * case.events
    appended = case.events if case.shared else delivered
    cpu = sum(cost.cpu for cost in costs)
    late = [ms for viewer in open_ for ms in viewer.late] if case.rate else []
    found = [case.what, str(case.rate or "max"), str(case.readers), case.log, case.where]
    found += [f"{delivered / costs[0].wall:,.0f}", f"{cpu / delivered * 1e6:.1f}"]
    found += [f"{delivered / cpu:,.0f}", f"{cpu / costs[0].wall:.0%}"]
    if traffic.calls:
        found += [f"{traffic.cpu / appended * 1e6:.1f}", f"{traffic.calls / appended:.2f}"]
        found += [f"{traffic.bytes / appended:,.0f}"]
    else:
        found += [""] * 3
    found += [f"{percentile(late, which):.1f}" if late else "" for which in (50, 99)]
    return [*found, f"{max(cost.load_share for cost in costs):.0%}"]


async def reconnecting(log: str, shared: bool, other: bool) -> str:
    """Measures the cost of resuming many readers whose connections broke at the same time."""
    path = f"/streams/{'shared' if shared else 'private'}?count=1000&interval=1"
    async with fleet(log, 2 if other else 1) as (servers, valkey):
        first, last = servers[0].port, servers[-1]
        open_ = await viewers([(first, path, None)] * RECONNECTS)
        async with asyncio.timeout(20):
            while min(viewer.events for viewer in open_) < 2:
                await asyncio.sleep(0.05)
        for viewer in open_:
            viewer.close()
        before = Traffic.of(valkey)
        with last.measured() as cost:
            requests = [(last.port, f"/runs/{one.run}", f"{one.run}.1") for one in open_]
            resumed = await viewers(requests)
            async with asyncio.timeout(20):
                while not all(viewer.events for viewer in resumed):
                    await asyncio.sleep(0.001)
        traffic = Traffic.of(valkey).since(before)
    what = f"resume, {'shared' if shared else 'private'}, {'another' if other else 'same'} worker"
    per_core = f"{RECONNECTS / cost.cpu:,.0f} per second of CPU"
    valkeys = f"; Valkey {traffic.cpu / RECONNECTS * 1e6:.0f} µs" if valkey else ""
    return f"{what} | {log} | {cost.cpu / RECONNECTS * 1e3:.2f} ms of CPU; {per_core}{valkeys}"


async def memory() -> AsyncIterator[str]:
    """Measures the memory of a finished run in Valkey and of an open run in the worker."""
    async with fleet("Valkey", 1) as ([server], valkey):
        assert valkey is not None
        used = [valkey.client.info("memory")["used_memory"]]
        for count in (0, LONG_RUN):
            for _ in range(RUNS_KEPT // 50):
                path = f"/streams/private?count={count}"
                frames = await opened(server.port, path, 50)
                await all_ended(frames, count, 60)
            used.append(valkey.client.info("memory")["used_memory"])
        short, long = ((b - a) / RUNS_KEPT for a, b in pairwise(used))
        each = (long - short) / LONG_RUN
        size = frames[0].bytes / LONG_RUN
        yield f"a run with only `start` and `end` | Valkey | {short:,.0f} bytes"
        yield f"each further event of {size:.0f} bytes | Valkey | {each:.0f} bytes"
    for log in ("memory", "Valkey"):
        async with fleet(log, 1) as ([server], _):
            path = "/streams/private?count=1&gated=1"
            await opened(server.port, path, 50)
            await asyncio.sleep(0.5)
            held = server.memory()
            await opened(server.port, path, RUNS_KEPT)
            await asyncio.sleep(0.5)
            kib = (server.memory() - held) / RUNS_KEPT / 1024
            yield f"an open run with one reader | {log} | {kib:.1f} KiB in the worker"


TITLES = """case | events/s of a run | readers | log | workers | delivered/s | worker µs/delivered \
| delivered/s of CPU | worker core | Valkey µs/event | calls/event | bytes/event \
| late ms p50 | p99 | load"""


async def second_table() -> list[str]:
    found = [
        await reconnecting(log, shared, other)
        for log, shared, other in [
            ("memory", False, False),
            ("Valkey", False, False),
            ("Valkey", False, True),
            ("Valkey", True, True),
        ]
    ]
    return [*found, *[line async for line in memory()]]


def main() -> None:
    allow_connections()
    os.sched_setaffinity(0, {LOAD_CORE})
    uvloop.install()
    print(f"| {TITLES} |\n|{'---|' * (TITLES.count('|') + 1)}")
    for case in CASES:
        print(f"| {asyncio.run(row(case))} |", flush=True)
    print("\n| what | log | |\n|---|---|---|")
    for line in asyncio.run(second_table()):
        print(f"| {line} |", flush=True)


if __name__ == "__main__":
    main()
