"""Draws bench/scaling.svg: how cost grows with readers, with open runs and with history.

Expected: cost is linear in delivered events and independent of history. `make bench` runs this
after run.py. It also prints the numbers.
"""

import asyncio
import os
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import uvloop

from bench.load import Reader, all_ended, connected, go, opened, stream
from bench.run import allow_connections
from bench.server import LOAD_CORE, Server

IMAGE = Path(__file__).parent / "scaling.svg"

READERS = [1, 10, 50, 100, 200, 400, 700, 1000, 1500, 2000]
RATE, VIEWS = 100, 150
OPEN = [1000, 2500, 5000, 7500, 10_000]
HISTORY = [100, 1000, 10_000, 100_000, 1_000_000]
PEERS = ["floor", "streams", "sse-starlette"]

Line = list[tuple[float, float]]


async def delivered(peer: str, readers: int) -> float:
    """Returns the events delivered per second of CPU when a shared run has `readers` readers.

    CPU time, not wall time: other processes on this core do not change it.
    """
    async with Server(peer) as server:
        await stream(server.port, "/streams/numbers?count=300", 300)
        path = f"/streams/feed?count={VIEWS}&interval={1 / RATE}"
        open_ = await opened(server.port, path, readers)
        with server.measured() as cost:
            await go(server.port)
            await all_ended(open_, VIEWS, 120)
    rate = readers * VIEWS / cost.cpu
    print(
        f"| {peer} | {readers} readers | {rate:,.0f} events/s of CPU | load {cost.load_share:.0%} |"
    )
    return rate


async def memory(peer: str) -> Line:
    """Measures MiB against the number of open streams: one run each, with nothing to send."""
    line: Line = []
    async with Server(peer) as server:
        path = "/streams/numbers?count=1&gated=1"
        for reader in await opened(server.port, path, 50):
            reader.close()
        await asyncio.sleep(0.5)
        before, open_ = server.memory(), list[Reader]()
        for count in OPEN:
            open_ += await opened(server.port, path, count - len(open_))
            line.append((count, (server.memory() - before) / 2**20))
            print(f"| {peer} | {count} open runs | {line[-1][1]:.0f} MiB |")
    return line


async def resumes() -> Line:
    """Measures the CPU µs of a resume ten events before the end, against the length of the run."""
    times, line = 300, Line()
    async with Server("streams") as server:
        for events in HISTORY:
            head = (await stream(server.port, f"/streams/history?count={events}", events)).head
            run = head.partition(b"/runs/")[2].partition(b"\r\n")[0].decode()
            reader = await connected(server.port)
            with server.measured() as cost:
                for _ in range(times):
                    reader.ask(f"/runs/{run}", last_event_id=f"{run}.{events - 10}")
                    await all_ended([reader], 10, 10)
            line.append((events, cost.cpu / times * 1e6))
            print(f"| streams | resume in a run of {events} events | {line[-1][1]:.0f} µs |")
    return line


def draw(rates: dict[str, Line], megabytes: dict[str, Line], resumed: Line) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "streams", "svg.fonttype": "none", "font.size": 9})
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    left.plot(READERS, [RATE * count for count in READERS], ":", color="gray", label="offered")
    lines: list[tuple[Any, dict[str, Line]]] = [(left, rates), (middle, megabytes)]
    for axes, peers in lines:
        for peer, line in peers.items():
            axes.plot(*zip(*line, strict=True), marker=".", label=peer)
        axes.legend()
        axes.grid(alpha=0.3)
    left.set(yscale="log", xscale="log")
    left.set(title="One run of 100 events/s", xlabel="readers", ylabel="events/s per core")
    middle.set(title="Open runs with nothing to send", xlabel="open runs", ylabel="MiB")
    right.plot(*zip(*resumed, strict=True), marker=".", color="C1")
    right.set(title="Resume ten events before the end", xlabel="events in the run", ylabel="CPU µs")
    right.set(xscale="log", ylim=(0, 2 * statistics.median(value for _, value in resumed)))
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(IMAGE, metadata={"Date": None})


def main() -> None:
    allow_connections()
    os.sched_setaffinity(0, {LOAD_CORE})
    uvloop.install()
    rates: dict[str, Line] = {
        peer: [(count, asyncio.run(delivered(peer, count))) for count in READERS] for peer in PEERS
    }
    megabytes = {peer: asyncio.run(memory(peer)) for peer in PEERS}
    draw(rates, megabytes, asyncio.run(resumes()))


if __name__ == "__main__":
    main()
