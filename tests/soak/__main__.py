"""Runs the soak test: `make soak`, for ten minutes on each log; test_soak.py for some seconds.

Real servers run what app.py serves. With SQLite there are two, of which one is killed from time to
time. Load comes in two parts, the second three times as long as the first; after each, when
everybody has left and what was retained is gone, the first worker says what it holds. It must not
be more after the second.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random

import httpx
import msgspec

from tests.soak.held import Held
from tests.soak.load import Load
from tests.support.servers import ROOT, free_port, until

LOGS = {"memory": 1, "sqlite": 2}
"""The logs, and how many workers each has."""

RETAIN, RETAIN_LONG = 12, 30
"""A viewer is away for less. Many of them keep the processor so busy that this takes longer."""

KILL_SECONDS = 15.0
"""A worker is killed this often, on average."""

LAST_SECONDS = 240.0
"""After the load, every honest viewer is done, and the workers are idle, in this time."""

GROWTH_BYTES = 16 * 2**20
"""The allocator keeps memory; the second part of the load may cost this much more."""


class Worker:
    """A server process, on a port of its own."""

    def __init__(self, number: int, log: str, folder: Path, retain: int) -> None:
        self.address = ("127.0.0.1", free_port())
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._output = folder / f"worker-{number}.log"
        self._environ = {"STREAMS_LOG": log, "STREAMS_RETRY": "0,0.2", "STREAMS_WINDOW": "65536"}
        self._environ |= {"STREAMS_RETAIN": str(retain), "STREAMS_LINGER": str(retain)}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._spawn()
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=self.url) as client:
            while True:
                assert self._process is not None
                assert self._process.poll() is None, self._output.read_text()
                with suppress(httpx.TransportError):
                    if (await client.get("/health")).is_success:
                        return
                await asyncio.sleep(0.05)

    def _spawn(self) -> None:
        command = ["-m", "uvicorn", "tests.soak.app:app", "--port", str(self.address[1])]
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--log-level", "warning"],
                cwd=ROOT,
                env={**os.environ, **self._environ},
                stdout=output,
                stderr=output,
            )

    async def kill(self) -> None:
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGKILL)
            await until(lambda: process.poll() is not None, "the worker has ended", 30)

    def check_output(self) -> None:
        assert "Traceback" not in (output := self._output.read_text()), output[:5000]


async def settled(workers: list[Worker]) -> Held:
    """What the first worker holds when nobody reads and nothing is retained."""
    async with asyncio.timeout(LAST_SECONDS), httpx.AsyncClient(timeout=30) as client:
        for worker in workers:
            while True:
                health = (await client.get(f"{worker.url}/health")).json()
                if not (health["runs"] or health["readers"] or health["bytes"]):
                    break
                await asyncio.sleep(0.2)
        return msgspec.json.decode((await client.get(f"{workers[0].url}/debug")).content, type=Held)


async def kill_some(workers: list[Worker], random: Random, over: asyncio.Event) -> int:
    """Kills and starts workers but the first one, until `over` is set. Returns how many."""
    killed = 0
    while len(workers) > 1:
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), random.expovariate(1 / KILL_SECONDS))
        if over.is_set():
            break
        worker = random.choice(workers[1:])
        await worker.kill()
        await worker.start()
        killed += 1
    return killed


async def load(
    workers: list[Worker], random: Random, seconds: float, viewers: int
) -> tuple[Load, int]:
    """Puts the workers under load for so many seconds, and checks what the viewers saw."""
    part = Load(random, [worker.address for worker in workers], longest=150 if seconds > 10 else 40)
    asyncio.get_running_loop().call_later(seconds, part.over.set)
    async with asyncio.timeout(seconds + LAST_SECONDS + 30):
        _, killed = await asyncio.gather(
            part.run(viewers, LAST_SECONDS), kill_some(workers, random, part.over)
        )
    part.check()
    return part, killed


async def soak(log: str, seed: int, seconds: float, viewers: int) -> str:
    """Returns a report. Raises AssertionError if something grew, or a viewer missed something."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        url = "memory" if log == "memory" else f"sqlite:{folder}/runs.db?lease=2.5"
        retain = RETAIN if viewers < 50 else RETAIN_LONG
        workers = [Worker(number, url, Path(folder), retain) for number in range(LOGS[log])]
        try:
            for worker in workers:
                await worker.start()
            first, killed = await load(workers, random, seconds / 4, viewers)
            before = await settled(workers)
            second, more = await load(workers, random, seconds * 3 / 4, viewers)
            after = await settled(workers)
            for worker in workers:
                worker.check_output()
        finally:
            for worker in workers:
                await worker.kill()
    counts = {kind: number + second.counts[kind] for kind, number in first.counts.items()}
    report = f"{counts}, {killed + more} kills, before {before}, after {after}"
    assert after.pid == before.pid
    assert after.tasks <= before.tasks, report
    assert after.threads <= before.threads, report
    assert after.files <= before.files + 2, report
    assert after.bytes <= before.bytes + GROWTH_BYTES, report
    return report


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--log", choices=LOGS, help="default: one after the other")
    parser.add_argument("--seed", type=int, default=Random().randint(0, 10**6))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--viewers", type=int, default=300)
    given = parser.parse_args(arguments)
    sys.stdout.write(f"seed {given.seed}\n")
    for log in [given.log] if given.log else LOGS:
        report = asyncio.run(soak(log, given.seed, given.seconds, given.viewers))
        sys.stdout.write(f"{log}: {report}\n")


if __name__ == "__main__":  # pragma: no cover
    main()
