"""A peer as a process on a core of its own, and what it costs: CPU time, instructions, memory.

CPU time is the scheduler's count of all threads, in nanoseconds. User-space instructions come from
`perf stat` where the machine has the counters. run.py starts these one after another.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
NODE = Path(__file__).parent / "node_modules" / "better-sse"

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]

PEERS = {
    "floor": "bench.peers.floor:app",
    "streams": "bench.peers.ours:app",
    "guide": "bench.peers.guide:app",
    "sse-starlette": "bench.peers.sse_starlette:app",
    "FastAPI SSE": "bench.peers.fastapi_sse:app",
    "Litestar": "bench.peers.litestar_sse:app",
    "better-sse": "bench/peers/better_sse.mjs",
}

UVICORN = "--loop uvloop --http httptools --lifespan off --no-access-log --log-level error"


@dataclass
class Cost:
    """What happened between two moments: seconds of CPU and wall, `instructions` if counted."""

    cpu: float = 0.0
    user: float = 0.0
    wall: float = 0.0
    load: float = 0.0
    instructions: int | None = None

    @property
    def load_share(self) -> float:
        """How much of its core the load had: at 1 it would be the bottleneck."""
        return self.load / self.wall


class Server:
    """A running peer (or `package.module:app`), perhaps `under` another command. Entering waits
    until it listens, leaving kills it."""

    def __init__(self, peer: str, under: Sequence[str] = (), **environ: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        if peer == "better-sse":
            command = [*under, "node", PEERS[peer], str(self.port)]
        else:
            command = [*under, sys.executable, "-m", "uvicorn", PEERS.get(peer, peer)]
            command += [*UVICORN.split(), "--backlog", "4096", "--port", str(self.port)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environ},
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
        self.pid = self._process.pid

    async def __aenter__(self) -> Self:
        for _ in range(600):
            if self._process.poll() is not None:
                break
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return self
        self._process.kill()
        raise RuntimeError(f"{self._process.args!r} did not start")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def cpu(self) -> float:
        """Seconds of CPU that all threads have had."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def user(self) -> float:
        """Seconds of it in user space, as the kernel samples it: good to a few per cent."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of memory that are this process's own."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return sum(int(kb) for kb in re.findall(r"^Private_\w+: +(\d+) kB", text, re.M)) * 1024

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """The cost of what is done inside, known when it is left."""
        counter = Instructions(self.pid) if INSTRUCTIONS else None
        cost = Cost()
        cpu, user, load, wall = self.cpu(), self.user(), time.process_time(), time.perf_counter()
        yield cost
        cost.wall = time.perf_counter() - wall
        cost.load = time.process_time() - load
        cost.cpu = self.cpu() - cpu
        cost.user = self.user() - user
        if counter is not None:
            cost.instructions = counter.stop()


class Instructions:
    """User-space instructions of a process from now on, counted by `perf stat`."""

    EVENT = "instructions:u"

    def __init__(self, pid: int) -> None:
        command = ["perf", "stat", "-x,", "-e", self.EVENT, "-p", str(pid)]
        self._perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(0.2)  # until it has attached: it does not say when

    def stop(self) -> int:
        self._perf.send_signal(signal.SIGINT)
        _, report = self._perf.communicate(timeout=10)
        return int(report.partition(",")[0])

    @classmethod
    def counted_here(cls) -> bool:
        """Whether there is a perf, and a counter in this processor that it may use."""
        if shutil.which("perf") is None:
            return False
        command = ["perf", "stat", "-x,", "-e", cls.EVENT, "true"]
        report = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        return report.partition(",")[0].isdigit()


INSTRUCTIONS = Instructions.counted_here()
