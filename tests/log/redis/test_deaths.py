"""redis_log.py when workers die, sleep and leave: real processes, each with a port of its own."""

import json
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import httpx

from streams import source
from tests.support.servers import connection, exit_of, free_port, server_process, until
from tests.support.valkey import Valkey


@source
async def mortal(count: int = 10_000) -> AsyncIterator[dict[str, int]]:
    """Not restartable."""
    for number in range(count):
        yield {"number": number}
        await anyio.sleep(0.02)


Worker = tuple[str, subprocess.Popen[str]]


@contextmanager
def worker_processes(count: int, redis_url: str) -> Iterator[list[Worker]]:
    sources = "streams.sources:counter,tests.log.redis.test_deaths:mortal"
    with ExitStack() as stack:
        workers = []
        for _ in range(count):
            port = free_port()
            process = stack.enter_context(
                server_process(
                    port,
                    "--timeout-graceful-shutdown",
                    "2",
                    STREAMS_LOG=redis_url,
                    STREAMS_SOURCES=sources,
                    STREAMS_RETAIN="2",
                )
            )
            workers.append((f"http://127.0.0.1:{port}", process))
        yield workers


def numbers(body: bytes) -> list[int]:
    return [int(n) for n in re.findall(rb'"number":(\d+)', body)]


def last_id(body: bytes) -> str:
    return str(re.findall(rb"id: (\S+)\n", body[: body.rfind(b"\n\n")])[-1].decode())


async def test_a_restartable_run_goes_on_elsewhere_when_its_worker_is_killed(
    redis_url: str,
) -> None:
    path = "/streams/counter?count=60&interval=0.02"
    with worker_processes(3, redis_url) as ((one, process), (other, _), (third, _)):
        async with connection(one, path) as stream:
            await stream.until(lambda stream: len(numbers(stream.body)) > 10)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(lambda view: len(numbers(view.body)) > 10)
                process.send_signal(signal.SIGKILL)
                with anyio.fail_after(5):
                    await view.until(lambda view: 50 in numbers(view.body), seconds=5)
                await view.until(lambda view: view.terminated)
        assert numbers(view.body) == list(range(60))
        assert view.body.endswith(b'"completed"}\n\n')
        async with httpx.AsyncClient() as client:
            rest = await client.get(third + path, headers={"Last-Event-ID": f"{stream.run}.7"})
            assert numbers(rest.content) == list(range(7, 60)), "no second start, no gap"
            healths = [(await client.get(f"{url}/health")).json() for url in (other, third)]
        assert sum(health["restarts"] for health in healths) == 1


async def test_any_other_run_fails_with_producer_lost(redis_url: str) -> None:
    with worker_processes(2, redis_url) as ((one, process), (other, _)):
        async with connection(one, "/streams/mortal") as stream:
            await stream.until(lambda stream: b".10\n" in stream.body)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(lambda view: b".10\n" in view.body)
                process.send_signal(signal.SIGKILL)
                await view.until(lambda view: view.terminated, seconds=6)
    end = json.loads(view.body.rpartition(b"data: ")[2])
    assert end["status"] == "failed"
    assert end["error"]["type"] == "ProducerLost"


async def test_a_producer_that_wakes_after_the_takeover_is_refused(redis_url: str) -> None:
    path = "/streams/counter?count=300&interval=0.01"
    with worker_processes(2, f"{redis_url}&lease=1.5") as ((one, process), (other, _)):
        async with connection(one, path) as stream:
            await stream.until(lambda stream: len(numbers(stream.body)) > 10)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(lambda view: len(numbers(view.body)) > 10)
                process.send_signal(signal.SIGSTOP)
                paused_at = len(numbers(view.body))
                await view.until(lambda view: len(numbers(view.body)) > paused_at + 30, seconds=10)
                process.send_signal(signal.SIGCONT)
                await view.until(lambda view: view.terminated, seconds=20)
                await stream.until(lambda stream: stream.terminated, seconds=20)
        assert numbers(view.body) == list(range(300))
        assert numbers(stream.body) == list(range(300)), "its own viewers go on, too"
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{one}/health")).json()["running"] == 0
            assert (await client.get(f"{other}/health")).json()["restarts"] == 1


async def test_a_worker_that_leaves_hands_its_runs_over_at_once(redis_url: str) -> None:
    path = "/streams/counter?count=200&interval=0.02"
    with worker_processes(2, redis_url) as ((one, process), (other, _)):
        async with connection(one, path) as stream:
            await stream.until(lambda stream: len(numbers(stream.body)) > 10)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(lambda view: len(numbers(view.body)) > 10)
                process.send_signal(signal.SIGTERM)
                await stream.to_the_end(5)
                had = numbers(stream.body)
                await exit_of(process, 5)
                so_far = len(numbers(view.body))
                await view.until(lambda view: len(numbers(view.body)) > so_far + 20, seconds=2)
                headers = f"Last-Event-ID: {last_id(stream.body)}\r\n"
                async with connection(other, path, headers=headers) as again:
                    await again.until(lambda again: again.terminated, seconds=10)
                await view.until(lambda view: view.terminated)
    assert numbers(view.body) == list(range(200))
    assert had + numbers(again.body) == list(range(200))


async def test_when_all_have_left_the_next_one_to_come_goes_on(
    redis_url: str, shared_valkey: Valkey
) -> None:
    path = "/streams/counter?count=100&interval=0.02"
    with worker_processes(1, redis_url) as ((one, process),):
        async with connection(one, path) as stream:
            await stream.until(lambda stream: len(numbers(stream.body)) > 10)
            process.send_signal(signal.SIGTERM)
            await stream.to_the_end()
        await exit_of(process, 5)
    prefix = redis_url.partition("prefix=")[2]
    assert shared_valkey.client.hget(f"{prefix}:run:{stream.run}", "status") == "running"
    with worker_processes(1, redis_url) as ((other, _),):
        headers = f"Last-Event-ID: {last_id(stream.body)}\r\n"
        async with connection(other, path, headers=headers) as again:
            await again.until(lambda again: again.terminated, seconds=10)
        assert numbers(stream.body) + numbers(again.body) == list(range(100))
        await until(lambda: not keys_of_runs(shared_valkey, prefix), seconds=10)


def keys_of_runs(valkey: Valkey, prefix: str) -> list[Any]:
    keys: Any = valkey.client.keys(f"{prefix}:*")
    return [key for key in keys if key.split(":")[1] in ("run", "log", "place", "shared", "runs")]
