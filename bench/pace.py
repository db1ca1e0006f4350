"""Measures what it saves to join tokens: 100 private answers of 50 tokens/s, with and without.

The log is in memory, then in SQLite. Run it with `python -m bench.pace`, or `--quick`. Invariants:

1. In a round both run one after another, each in a new process on the same core.
2. Answers begin at random times, so that they are not in step.
3. The table shows the median of the rounds, and of the ratios with half of their spread.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import urllib.request
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import uvloop

from bench.load import all_ended, connected, stream
from bench.peers.feed import MARK
from bench.run import percentile, ratio
from bench.server import LOAD_CORE, Server

ANSWERS = 100
TOKENS_PER_SECOND = 50
EVERY = [0.0, 0.05]


def path(tokens: int, **parameters: Any) -> str:
    """The path of an answer of so many tokens, each of which contains MARK."""
    reply = " ".join([MARK] * tokens)
    return f"/streams/tokens?{urlencode({'reply': reply, **parameters})}"


def events_of(server: Server) -> int:
    """How many events the server has appended."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=10) as health:
        return int(json.load(health)["events"])


async def measure(log: str, every: float, seconds: float) -> dict[str, float]:
    chance, tokens = random.Random(1), round(seconds * TOKENS_PER_SECOND)
    async with Server("bench.peers.answers:app", STREAMS_LOG=log) as server:
        await stream(server.port, path(300, tokens_per_second=10_000, first_token=0), 300)
        gc.collect()
        gc.disable()
        readers = [await connected(server.port) for _ in range(ANSWERS)]
        begins = [1 + chance.random() for _ in readers]
        before = events_of(server)
        for seed, (reader, begin) in enumerate(zip(readers, begins, strict=True)):
            pace = {"tokens_per_second": TOKENS_PER_SECOND, "first_token": begin, "seed": seed}
            reader.ask(path(tokens, every=every, **pace))
            await reader.answered
        with server.measured() as cost:
            await all_ended(readers, tokens, seconds + 60)
        gc.enable()
        count = ANSWERS * tokens
        late = [
            (reader.first - reader.asked - begin) * 1e3
            for reader, begin in zip(readers, begins, strict=True)
        ]
        return {
            "CPU µs per token": cost.cpu / count * 1e6,
            "CPU of a core, %": cost.cpu / cost.wall * 100,
            "events per token": (events_of(server) - before) / count,
            "bytes per token": sum(reader.bytes for reader in readers) / count,
            "first token late, ms, p50": percentile(late, 50),
        }


def rows(name: str, rounds: int, seconds: float) -> Iterator[str]:
    """Yields a row of the table for each figure, with the log of this name."""
    results = []
    for _ in range(rounds):
        for every in EVERY:
            with TemporaryDirectory() as folder:
                log = "" if name == "memory" else f"sqlite:{folder}/runs.db"
                results.append(asyncio.run(measure(log, every, seconds)))
    for figure in results[0]:
        values = [result[figure] for result in results]
        single, joined = values[::2], values[1::2]
        cells = [f"{statistics.median(numbers):.3g}" for numbers in (single, joined)]
        cells.append(ratio([b / a for a, b in zip(single, joined, strict=True)]))
        yield f"| {name} | {figure} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds, seconds = (1, 3) if parser.parse_args().quick else (3, 20)
    os.sched_setaffinity(0, {LOAD_CORE})
    uvloop.install()
    print("| log | figure | single | joined at 50 ms | joined ÷ single |\n|---|---|---|---|---|")
    for name in ("memory", "SQLite"):
        print(*rows(name, rounds, seconds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
