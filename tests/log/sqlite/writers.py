"""Processes that write to a SQLite file until they are killed or fenced, and what they have seen.

Run as a module: URL, worker, runs, interval. A writer prints "ready", then the number of each event
that the store has acknowledged for all its runs, and "fenced" when it may not go on.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from streams.event import frame
from streams.log import Limits
from streams.log.sqlite import SQLiteStore
from streams.log.store import Append, Committed
from tests.support.event_logs import info
from tests.support.servers import until


def event(run: str, number: int, worker: str) -> bytes:
    return frame(run.encode(), number, None, worker.encode())


async def write(url: str, worker: str, runs: int, interval: float) -> None:
    store = SQLiteStore(url)
    await store.open(worker)
    names = [f"{worker}-{number}" for number in range(runs)]
    for name in names:
        await store.create(info(name), Limits(2**20, 300))
    print("ready", flush=True)  # noqa: T201
    number = 0
    while True:
        appends = [Append(name, number, [event(name, number, worker)]) for name in names]
        outcomes = await store.append(appends)
        if outcomes != [Committed(number, 0)] * runs:
            print("fenced", flush=True)  # noqa: T201
            return
        print(number, flush=True)  # noqa: T201
        number += 1
        if number % 100 == 0:
            await store.renew(names)
        await asyncio.sleep(interval)


class Writer:
    """A writer's process. Its output is a file, which survives it."""

    def __init__(self, url: str, folder: Path, worker: str, runs: int, interval: float) -> None:
        self.worker = worker
        self.runs = [f"{worker}-{number}" for number in range(runs)]
        self._path = url.removeprefix("sqlite:").partition("?")[0]
        self._output = folder / f"{worker}.out"
        module = ["-m", "tests.log.sqlite.writers", url, worker, str(runs), str(interval)]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen([sys.executable, *module], stdout=output)

    def lines(self) -> list[str]:
        return self._output.read_text().splitlines(keepends=True)

    @property
    def acknowledged(self) -> int:
        """The newest event that the store has acknowledged, or -1."""
        numbers = [line for line in self.lines() if line.endswith("\n") and line.strip().isdigit()]
        return int(numbers[-1]) if numbers else -1

    @property
    def fenced(self) -> bool:
        return self.lines()[-1:] == ["fenced\n"]

    async def until_acknowledged(self, number: int) -> None:
        what = f"{self.worker} has written event {number}"
        await until(lambda: self.acknowledged >= number, what, 30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def pause(self) -> bool:
        """Stops the process. Returns whether others can write: it may be amid a transaction."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        with closing(sqlite3.connect(self._path, timeout=0, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    async def pause_between_commits(self) -> None:
        """Stops the process while it is in no transaction."""
        for _ in range(1000):
            if self.pause():
                return
            self.resume()
            await self.until_acknowledged(self.acknowledged + 1)
        raise AssertionError(f"not reached in 1000 attempts: {self.worker} is between two commits")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def writers(
    url: str, folder: Path, *workers: str, runs: int = 3, interval: float = 0.004
) -> Iterator[list[Writer]]:
    started = [Writer(url, folder, worker, runs, interval) for worker in workers]
    try:
        yield started
    finally:
        for writer in started:
            writer.kill()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
