"""Counts user-space instructions per event with valgrind.

Two runs differ by hardly 1 %, even on a busy machine where CPU time is not reliable, and the
processor needs no performance counters. A server is fifty times slower under valgrind, so the cases
are small. Counting starts when all streams are open; only the case `short` includes opening and
closing them. Requires valgrind with callgrind. Run it with `make bench-instructions`.
"""

import argparse
import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

import uvloop

from bench.load import Reader, all_ended, connected, go, opened, stream
from bench.server import LOAD_CORE, PEERS, Server

CASES = {
    "flood": (1, "/streams/numbers?count=6000&gated=1", 6000),
    "paced": (25, "/streams/numbers?count=1000&interval=0.25&gated=1", 40),
    "fan-out": (60, "/streams/feed?count=1000&interval=0.5", 16),
    "short": (40, "/streams/numbers?count=10", 10),
}
FAN_OUT_PEERS = ["floor", "streams", "sse-starlette"]


class Counted(Server):
    """A peer under valgrind. Counting starts with count()."""

    def __init__(self, peer: str, directory: str) -> None:
        self._out = Path(directory)
        valgrind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"]
        super().__init__(peer, [*valgrind, f"--callgrind-out-file={directory}/out"])

    def _control(self, *arguments: str) -> None:
        command = ["callgrind_control", *arguments, str(self.pid)]
        subprocess.run(command, check=True, capture_output=True)

    def count(self) -> None:
        self._control("-i", "on")

    def counted(self) -> int:
        """Number of instructions executed since count()."""
        self._control("-d")
        lines = [line for out in self._out.iterdir() for line in out.read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("totals:"))


async def read_short_streams(reader: Reader, times: int) -> None:
    for _ in range(times):
        reader.ask(CASES["short"][1])
        await all_ended([reader], 10, 60)


async def measure(case: str, peer: str) -> float:
    """Returns thousands of instructions per delivered event; for `short`, per stream."""
    readers, path, events = CASES[case]
    with tempfile.TemporaryDirectory() as directory:
        async with Counted(peer, directory) as server, asyncio.timeout(180):
            await stream(server.port, "/streams/numbers?count=50", 50)
            if case == "short":
                reader = await connected(server.port)
                await read_short_streams(reader, 20)
                server.count()
                await read_short_streams(reader, readers)
                return server.counted() / readers / 1e3
            open_ = await opened(server.port, path, readers)
            server.count()
            await go(server.port)
            while min(reader.events for reader in open_) < events:
                await asyncio.sleep(0.02)
            return server.counted() / sum(reader.events for reader in open_) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=",".join(p for p in PEERS if p != "better-sse"))
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case")
    given = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    uvloop.install()
    peers = given.peers.split(",")
    print(f"| k instructions | {' | '.join(peers)} |\n|{'---|' * (len(peers) + 1)}")
    for case in given.cases:
        cells = [case]
        for peer in peers:
            supported = case != "fan-out" or peer in FAN_OUT_PEERS
            cells.append(f"{asyncio.run(measure(case, peer)):.1f}" if supported else "")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
