"""Measures this project and its peers and prints one table of ratios.

Run it with `make bench` or `make bench-quick`. Invariants:

1. In a round the peers run one after another, on the same core, with the same settings.
2. Each case of each peer runs in a new process.
3. A ratio divides a peer's cost by this project's cost in the same round. The table shows the
   median of the rounds and how far they differ.
"""

import argparse
import asyncio
import gc
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import uvloop

from bench.load import Reader, all_ended, connected, go, opened, stream
from bench.server import LOAD_CORE, NODE, PEERS, Cost, Server

OURS = "streams"


@dataclass(frozen=True)
class Size:
    """How large the cases are."""

    rounds: int = 3
    flood: int = 200_000
    readers: int = 200
    seconds: float = 20
    viewers: int = 500
    views: int = 300
    idle: int = 2000
    idle_seconds: float = 30
    short: int = 3000
    probes: int = 300
    history: int = 100_000


QUICK = Size(
    rounds=1,
    flood=60_000,
    seconds=3,
    viewers=300,
    views=100,
    idle=500,
    idle_seconds=3,
    short=600,
    probes=100,
    history=50_000,
)


@dataclass
class Figures:
    """The results of one case for one peer, by name, and the load generator's share of its core."""

    numbers: dict[str, float]
    load: float = 0.0


def per_event(cost: Cost, events: int) -> Figures:
    numbers = {"CPU µs": cost.cpu / events * 1e6, "user µs": cost.user / events * 1e6}
    if cost.instructions is not None:
        numbers["k instr"] = cost.instructions / events / 1e3
    return Figures(numbers, cost.load_share)


async def gated(server: Server, path: str, readers: int, events: int) -> Figures:
    """Measures the cost of an event when each of `readers` receives `events` events."""
    await stream(server.port, "/streams/numbers?count=300", 300)
    open_ = await opened(server.port, path, readers)
    with server.measured() as cost:
        await go(server.port)
        await all_ended(open_, events, 300)
    return per_event(cost, readers * events)


async def flood(server: Server, size: Size) -> Figures:
    return await gated(server, f"/streams/numbers?count={size.flood}&gated=1", 1, size.flood)


async def paced(server: Server, size: Size) -> Figures:
    events = round(size.seconds * 50)
    path = f"/streams/numbers?count={events}&interval=0.02&gated=1"
    return await gated(server, path, size.readers, events)


async def fan_out(server: Server, size: Size) -> Figures:
    path = f"/streams/feed?count={size.views}&interval=0.01"
    return await gated(server, path, size.viewers, size.views)


async def idle(server: Server, size: Size) -> Figures:
    path = "/streams/numbers?count=1&gated=1"
    for reader in await opened(server.port, path, 50):  # they fill caches
        reader.close()
    await asyncio.sleep(0.5)
    before = server.memory()
    await opened(server.port, path, size.idle)
    with server.measured() as cost:
        await asyncio.sleep(size.idle_seconds)
    kib = (server.memory() - before) / size.idle / 1024
    numbers = {"KiB": kib, "CPU ms/min": cost.cpu / size.idle / size.idle_seconds * 60e3}
    return Figures(numbers, cost.load_share)


async def short(server: Server, size: Size) -> Figures:
    path, at_once = "/streams/numbers?count=10", 4
    await stream(server.port, "/streams/numbers?count=300", 300)
    waits: list[float] = []

    async def one_after_another(reader: Reader) -> None:
        for _ in range(size.short // at_once):
            reader.ask(path)
            await all_ended([reader], 10, 60)
            waits.append(reader.first - reader.asked)

    readers = [await connected(server.port) for _ in range(at_once)]
    with server.measured() as cost:
        await asyncio.gather(*map(one_after_another, readers))
    figures = per_event(cost, len(waits))
    figures.numbers["first ms p50"] = statistics.median(waits) * 1e3
    figures.numbers["first ms p99"] = percentile(waits, 99) * 1e3
    return figures


async def fairness(server: Server, size: Size) -> Figures:
    """Measures how long requests and events of other streams wait for a source that never waits.

    A request that gets no turn within `patience` seconds counts as `patience` seconds.
    """
    interval, patience = 0.05, 2.0
    port = server.port
    path = f"/streams/numbers?count=100000&interval={interval}"
    ticking = await opened(port, path, 5, record=True)
    [greedy] = await opened(port, "/streams/numbers?count=1000000000", 1)
    begun = time.perf_counter()
    waits: list[float] = []
    with server.measured() as cost, suppress(TimeoutError):
        for _ in range(size.probes):
            asked = time.perf_counter()
            waits.append(patience)
            async with asyncio.timeout(patience):
                await stream(port, "/streams/numbers?count=1", 1)
            waits[-1] = time.perf_counter() - asked
            await asyncio.sleep(0.01)
    late: list[float] = []
    for reader in ticking:
        moments = [begun, *(reader.moments or []), time.perf_counter()]
        late += [later - earlier - interval for earlier, later in pairwise(moments)]
    greedy.close()
    numbers = {
        "request ms p99": percentile(waits, 99) * 1e3,
        "event late ms p99": percentile(late, 99) * 1e3,
    }
    return Figures(numbers, cost.load_share)


def percentile(values: list[float], which: int) -> float:
    return sorted(values)[len(values) * which // 100] if values else float("inf")


async def replay(server: Server, size: Size) -> Figures:
    """Replays a finished run to 20 readers at once. The floor sends one ready-made buffer."""
    readers = 20
    path = f"/streams/history?count={size.history}"
    await go(server.port)
    first = await stream(server.port, path, size.history)
    for line in first.head.split(b"\r\n"):
        if line.lower().startswith(b"content-location: "):
            path = line[18:].decode()
    connections = [await connected(server.port) for _ in range(readers)]
    with server.measured() as cost:
        for reader in connections:
            reader.ask(path)
        await all_ended(connections, size.history, 60)
    return per_event(cost, readers * size.history)


@dataclass(frozen=True)
class Case:
    what: str
    measure: Callable[[Server, Size], Awaitable[Figures]]
    peers: list[str] = field(default_factory=lambda: list(PEERS))


CASES = {
    "flood": Case("one reader, no pause between events; per event", flood),
    "paced": Case("one run per reader, 50 events/s each; per event", paced),
    "fan-out": Case(
        "one shared run, 100 events/s; per event delivered",
        fan_out,
        ["floor", OURS, "sse-starlette", "better-sse"],
    ),
    "idle": Case("open connections with nothing to send; per connection", idle),
    "short": Case("streams of ten events; per stream", short),
    "fairness": Case("other streams while one source never waits", fairness),
    "replay": Case("a finished run; per event delivered", replay, ["floor", OURS]),
}


async def measure(case: str, peer: str, size: Size) -> Figures:
    async with Server(peer) as server:
        gc.collect()
        gc.disable()
        figures = await CASES[case].measure(server, size)
        gc.enable()
    return figures


def head(peers: list[str]) -> str:
    titles = ["case", "figure", OURS, *(f"{peer} ÷" for peer in peers), "load"]
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"


def rows(case: str, peers: list[str], rounds: list[dict[str, Figures]]) -> Iterator[str]:
    """Yields a row for each figure: this project's median, then each peer's ratio and its spread.

    The last cell is the load generator's highest share of its core with any peer.
    """
    load = max(figures.load for results in rounds for figures in results.values())
    for figure in rounds[0][OURS].numbers:
        ours = [results[OURS].numbers[figure] for results in rounds]
        cells = [case, figure, f"{statistics.median(ours):.3g}"]
        for peer in peers:
            if peer in rounds[0]:
                theirs = [results[peer].numbers[figure] for results in rounds]
                cells.append(ratio([a / b for a, b in zip(theirs, ours, strict=True)]))
            else:
                cells.append("")
        yield f"| {' | '.join(cells)} | {load:.0%} |"


def ratio(ratios: list[float]) -> str:
    """The median ± half the distance between the lowest and the highest ratio."""
    middle = f"{statistics.median(ratios):.2f}"
    return middle if len(ratios) == 1 else f"{middle} ±{(max(ratios) - min(ratios)) / 2:.2f}"


def allow_connections() -> None:
    """Raises the limit of open files, which the started servers inherit, to the allowed maximum."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peers", default=",".join(PEERS))
    given = parser.parse_args()
    size = QUICK if given.quick else Size()
    rounds = given.rounds or size.rounds
    chosen = [peer for peer in given.peers.split(",") if peer != "better-sse" or NODE.exists()]
    allow_connections()
    os.sched_setaffinity(0, {LOAD_CORE})
    uvloop.install()
    others = [peer for peer in chosen if peer != OURS]
    print(head(others))
    for case in given.cases:
        peers = [peer for peer in CASES[case].peers if peer in chosen]
        results = [
            {peer: asyncio.run(measure(case, peer, size)) for peer in peers} for _ in range(rounds)
        ]
        print(*rows(case, others, results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
