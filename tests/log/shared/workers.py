"""Workers that share a store, in this process or in processes of their own, and what they hold."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpx

from streams import Streams, source
from streams.log import RunLog
from streams.log.shared import SharedLog
from tests.support.servers import Connection, free_port, server_process, serving

MORTAL, GATED = "tests.log.shared.workers:mortal", "tests.log.shared.workers:gated"

Condition = tuple[Callable[[Connection], bool], str, float]

# For Connection.until(). A takeover takes seconds: the lease of the dead worker has to expire.
NUMBER_19: Condition = (lambda stream: 19 in numbers(stream.body), "number 19 is there", 10)
TERMINATED: Condition = (lambda stream: stream.terminated, "the stream has ended", 30)


@source
async def mortal(count: int = 10_000) -> AsyncIterator[dict[str, int]]:
    """Counts like `counter`, but another worker cannot continue it."""
    for number in range(count):
        yield {"number": number}
        await anyio.sleep(0.02)


@source
async def gated(gate: str, *, after: int = 0) -> AsyncIterator[dict[str, int]]:
    """Counts to 39; before number 20 it waits until the file `gate` exists."""
    for number in range(after, 40):
        while number == 20 and not await anyio.Path(gate).exists():
            await anyio.sleep(0.02)
        yield {"number": number}


@asynccontextmanager
async def workers(count: int, url: str, sources: Any, **options: Any) -> AsyncIterator[list[str]]:
    """Runs several workers in this process, each with a server and a log, and yields their URLs."""
    async with AsyncExitStack() as stack:
        urls = []
        for _ in range(count):
            streams = Streams(sources, log=url, **options)
            urls.append(await stack.enter_async_context(serving(streams, lifespan="on")))
        yield urls


@contextmanager
def worker_processes(
    count: int, url: str, retain: float = 60
) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """Runs several workers, each in a process and on a port of its own; yields URL and process."""
    with ExitStack() as stack:
        workers = []
        for _ in range(count):
            port = free_port()
            process = server_process(
                port,
                *("--timeout-graceful-shutdown", "2"),
                STREAMS_LOG=url,
                STREAMS_SOURCES=f"{MORTAL},{GATED}",
                STREAMS_RETAIN=str(retain),
            )
            workers.append((f"http://127.0.0.1:{port}", stack.enter_context(process)))
        yield workers


async def kill(log: SharedLog) -> None:
    """Cancels the tasks of a SharedLog. Other workers see the same as when a process is killed.

    open() wakes it up again, like a process that was stopped and continues.
    """
    for task in log._tasks:
        task.cancel()
    await asyncio.wait(log._tasks)
    log._tasks = []


class AdoptNothing:
    """An adopter that leaves the runs of dead workers as they are when they have been claimed."""

    async def adopt(self, log: RunLog) -> None: ...


async def claimed(survivor: SharedLog, dying: SharedLog) -> RunLog:
    """Kills a worker, and returns its only run when the survivor has claimed it."""
    claimed: asyncio.Future[RunLog] = asyncio.get_running_loop().create_future()

    class Adopter:
        async def adopt(self, log: RunLog) -> None:
            claimed.set_result(log)

    survivor.register(Adopter())
    await survivor.open()
    await kill(dying)
    return await asyncio.wait_for(claimed, 10)


async def until_async(holds: Callable[[], Awaitable[Any]], what: str, seconds: float = 10) -> None:
    """Like until(), for a state that has to be asked for with an await."""
    deadline = anyio.current_time() + seconds
    while not await holds():
        assert anyio.current_time() < deadline, f"not reached in {seconds:g} s: {what}"
        await asyncio.sleep(0.01)


async def state_of(url: str, run: str) -> Any:
    """The state of a run, as the worker at `url` answers."""
    async with httpx.AsyncClient(base_url=url) as client:
        headers = {"Accept": "application/json"}
        return (await client.get(f"/runs/{run}", headers=headers)).json()


async def health_of(url: str) -> Any:
    """What the worker at `url` says of itself."""
    async with httpx.AsyncClient(base_url=url) as client:
        return (await client.get("/health")).json()


def numbers(body: bytes) -> list[int]:
    """The numbers in the events of a stream's body."""
    return [int(n) for n in re.findall(rb'"number":(\d+)', body)]


def last_id(body: bytes) -> str:
    """The id of the last complete event."""
    return str(re.findall(rb"id: (\S+)\n", body[: body.rfind(b"\n\n")])[-1].decode())
