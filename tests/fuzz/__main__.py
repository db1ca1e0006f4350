"""Fuzzes for some minutes: `python -m tests.fuzz --minutes 3 --seed 1`.

Besides what an answer must be, no step of the server's event loop may take 50 ms of CPU, and the
server's memory must not grow. `--only` sends one request, as often as it takes.
"""

import argparse
import asyncio
import gc
import secrets
import sys
import tempfile
import threading
import time
from asyncio import events
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.fuzz.harness import RETAIN_SECONDS, Fault, fuzz, server
from tests.fuzz.requests import Request, request

STEP_SECONDS = 0.05
GROWTH_BYTES = 16 * 2**20


class Steps:
    """The longest step of each thread's event loop, in seconds of CPU, and what took it."""

    def __init__(self) -> None:
        self.longest: dict[int, tuple[float, str]] = {}
        inner = events.Handle._run

        def run(handle: Any) -> None:
            begin = time.thread_time()
            inner(handle)
            seconds, thread = time.thread_time() - begin, threading.get_ident()
            if seconds > self.longest.get(thread, (0, ""))[0]:
                # Of a task's step, the handle shows only a wrapper of the task.
                task = getattr(handle._callback, "__self__", None)
                self.longest[thread] = seconds, repr(task or handle)

        setattr(events.Handle, "_run", run)  # noqa: B010

    def of_others(self) -> tuple[float, str]:
        """The longest step of any thread but this one, since the last call."""
        own = threading.get_ident()
        found = [step for thread, step in self.longest.items() if thread != own]
        self.longest.clear()
        return max(found, default=(0.0, ""))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def until(deadline: float, seed: str, numbers: Iterator[int]) -> Iterator[Request]:
    while time.monotonic() < deadline:
        yield request(seed, next(numbers))


def fuzz_one(log: str, http: str, seed: str, seconds: float, steps: Steps) -> None:
    """Fuzzes a server with this log and HTTP parser. Raises Fault."""
    with tempfile.TemporaryDirectory() as folder:
        url = None if log == "memory" else f"sqlite:{folder}/runs.db"
        with server(url, http) as (port, failures):
            numbers = count()
            sizes = []
            # Without the server's start, which imports modules, and their objects: a collection of
            # all of them takes 40 ms, in whatever step it falls.
            gc.freeze()
            steps.of_others()
            for part in (1, 2, 3):  # What the first part leaves behind is normal.
                deadline = time.monotonic() + seconds / 3
                asyncio.run(fuzz(port, failures, until(deadline, seed, numbers)))
                time.sleep(2 * RETAIN_SECONDS)
                sizes.append(resident_bytes())
                longest, step = steps.of_others()
                say(
                    f"{log}, {http}, part {part}: {next(numbers)} requests, {sizes[-1] >> 20} MiB, "
                    f"longest step {1000 * longest:.0f} ms"
                )
                if longest > STEP_SECONDS:
                    raise Fault(f"a step of the event loop took {longest:.3f} s of CPU: {step}")
            if sizes[2] - sizes[1] > GROWTH_BYTES:
                raise Fault(f"the memory has grown: {sizes} bytes after each third")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--only", type=int, help="the number of one request of the seed")
    parser.add_argument("--log", choices=["memory", "sqlite"])
    parser.add_argument("--http", choices=["httptools", "h11"])
    given = parser.parse_args()
    say(f"seed {given.seed}")
    kinds = [
        (log, http)
        for log in ([given.log] if given.log else ["memory", "sqlite"])
        for http in ([given.http] if given.http else ["httptools", "h11"])
    ]
    steps = Steps()
    try:
        for log, http in kinds:
            seed = f"{given.seed}/{log}/{http}"
            if given.only is None:
                fuzz_one(log, http, seed, given.minutes * 60 / len(kinds), steps)
            else:
                one = request(seed, given.only)
                say(str(one))
                with server(None, http) as (port, failures):
                    asyncio.run(fuzz(port, failures, [one]))
    except Fault as fault:
        say(f"seed {given.seed}, {log}, {http}: {fault}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
