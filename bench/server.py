"""Runs a peer as a process on its own core and measures its CPU time, instructions and memory.

CPU time is the scheduler's count for all threads. User-space instructions come from `perf stat`
if the processor has the counters.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.servers import free_port

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
    """The cost of an interval, in seconds. `load` is the load generator's CPU time.

    `instructions` is None if the machine cannot count them.
    """

    cpu: float = 0.0
    user: float = 0.0
    wall: float = 0.0
    load: float = 0.0
    instructions: int | None = None

    @property
    def load_share(self) -> float:
        """The share of its core that the load generator used; at 1 it is the bottleneck."""
        return self.load / self.wall


class Server:
    """A running peer, by its name in PEERS or as `package.module:app`.

    `under` is a command that runs the server's command, such as valgrind. Entering the context
    waits until the server listens; leaving it kills the server.
    """

    def __init__(self, peer: str, under: Sequence[str] = (), **environ: str) -> None:
        self.port = free_port()
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
        raise RuntimeError(f"the server did not start: {self._process.args!r}")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def cpu(self) -> float:
        """Seconds of CPU that all threads have used."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def user(self) -> float:
        """Seconds of CPU in user space; the kernel samples it, to a few per cent."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of private memory of this process."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return sum(int(kb) for kb in re.findall(r"^Private_\w+: +(\d+) kB", text, re.M)) * 1024

    @contextmanager
    def measured(self) -> Iterator[Cost]:
        """Measures the block; the yielded Cost is filled in when the block ends."""
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
    """Counts user-space instructions of a process with `perf stat`, from construction to stop()."""

    EVENT = "instructions:u"

    def __init__(self, pid: int) -> None:
        command = ["perf", "stat", "-x,", "-e", self.EVENT, "-p", str(pid)]
        self._perf = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(0.2)  # perf does not report when it has attached

    def stop(self) -> int:
        self._perf.send_signal(signal.SIGINT)
        _, report = self._perf.communicate(timeout=10)
        return int(report.partition(",")[0])

    @classmethod
    def counted_here(cls) -> bool:
        """Whether perf is installed and may use an instruction counter of this processor."""
        if shutil.which("perf") is None:
            return False
        command = ["perf", "stat", "-x,", "-e", cls.EVENT, "true"]
        report = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        return report.partition(",")[0].isdigit()


INSTRUCTIONS = Instructions.counted_here()
