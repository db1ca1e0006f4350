"""Worker processes that are killed, stopped or shut down, each with a port of its own.

A run of the source `gated` cannot end before the test opens the gate.
"""

import json
import signal
from pathlib import Path

import anyio
import httpx
import pytest

from tests.log.shared.workers import (
    NUMBER_19,
    TERMINATED,
    health_of,
    last_id,
    numbers,
    until_async,
    worker_processes,
)
from tests.support.servers import Connection, connection, exit_of, until
from tests.support.stores import remains, shared_log, with_lease


@pytest.fixture
def gate(tmp_path: Path) -> anyio.Path:
    return anyio.Path(tmp_path) / "open"


async def run_of(stream: Connection) -> str:
    """The id of the run, when the response has begun."""
    await stream.until(*NUMBER_19)
    return stream.run


def whole(body: bytes) -> bytes:
    """The body up to its last complete event."""
    return body[: body.rfind(b"\n\n") + 2]


async def until_restarted(url: str) -> None:
    async def restarted() -> bool:
        return bool((await health_of(url))["restarts"] == 1)

    await until_async(restarted, "the other worker has continued the run", seconds=20)


async def test_another_worker_continues_a_restartable_run_when_its_worker_is_killed(
    store_url: str, gate: anyio.Path
) -> None:
    path = f"/streams/gated?gate={gate}"
    with worker_processes(3, store_url) as ((one, process), (other, _), (third, _)):
        async with connection(one, path) as stream:
            await stream.until(*NUMBER_19)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(*NUMBER_19)
                process.send_signal(signal.SIGKILL)
                await gate.touch()
                await view.until(*TERMINATED)
        assert numbers(view.body) == list(range(40))
        assert view.body.endswith(b'"completed"}\n\n')
        async with httpx.AsyncClient() as client:
            rest = await client.get(third + path, headers={"Last-Event-ID": f"{stream.run}.7"})
        assert numbers(rest.content) == list(range(7, 40)), "no second start, no gap"
        restarts = [(await health_of(url))["restarts"] for url in (other, third)]
        assert sum(restarts) == 1


@pytest.mark.parametrize(
    ("query", "what_to_do"),
    [
        ("", "start a new run"),
        ("?idempotency_key=0123456789abcdef", "start a new run with another key"),
    ],
    ids=["no key", "key"],
)
async def test_a_run_that_cannot_restart_fails_with_producer_lost(
    store_url: str, query: str, what_to_do: str
) -> None:
    with worker_processes(2, store_url) as ((one, process), (other, _)):
        async with connection(one, f"/streams/mortal{query}") as stream:
            await stream.until(*NUMBER_19)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(*NUMBER_19)
                process.send_signal(signal.SIGKILL)
                await view.until(*TERMINATED)
    end = json.loads(view.body.rpartition(b"data: ")[2])
    assert end["status"] == "failed"
    assert end["error"]["type"] == "ProducerLost"
    assert end["error"]["message"] == f"the worker that produced this run died; {what_to_do}"


async def test_when_the_only_server_is_killed_a_run_that_cannot_restart_fails_with_all_its_history(
    store_url: str,
) -> None:
    with worker_processes(1, store_url) as ((one, process),):
        async with (
            connection(one, "/streams/mortal") as stream,
            connection(one, f"/runs/{await run_of(stream)}") as view,
        ):
            await stream.until(*NUMBER_19)
            await view.until(*NUMBER_19)
            process.send_signal(signal.SIGKILL)
            await stream.to_the_end()
            await view.to_the_end()
    with worker_processes(1, store_url) as ((one, _),):
        for viewer in (stream, view):
            headers = f"Last-Event-ID: {last_id(viewer.body)}\r\n"
            async with connection(one, "/streams/mortal", headers=headers) as again:
                await again.until(*TERMINATED)
            shown = numbers(whole(viewer.body)) + numbers(again.body)
            assert shown == list(range(len(shown)))
            end = json.loads(again.body.rpartition(b"data: ")[2])
            assert (end["status"], end["error"]["type"]) == ("failed", "ProducerLost")


async def test_when_the_only_server_is_killed_its_successor_continues_a_restartable_run(
    store_url: str, gate: anyio.Path
) -> None:
    path = f"/streams/gated?gate={gate}"
    with worker_processes(1, store_url) as ((one, process),):
        async with connection(one, path) as stream:
            await stream.until(*NUMBER_19)
            process.send_signal(signal.SIGKILL)
            await stream.to_the_end()
    with worker_processes(1, store_url) as ((other, _),):
        await until_restarted(other)
        headers = f"Last-Event-ID: {last_id(stream.body)}\r\n"
        async with connection(other, path, headers=headers) as again:
            await gate.touch()
            await again.until(*TERMINATED)
    assert numbers(whole(stream.body)) + numbers(again.body) == list(range(40))


async def test_a_stopped_producer_that_continues_after_the_takeover_is_fenced(
    store_url: str, gate: anyio.Path
) -> None:
    with worker_processes(2, with_lease(store_url, 1.5)) as ((one, process), (other, _)):
        async with connection(one, f"/streams/gated?gate={gate}") as stream:
            await stream.until(*NUMBER_19)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(*NUMBER_19)
                process.send_signal(signal.SIGSTOP)
                await until_restarted(other)
                await gate.touch()
                process.send_signal(signal.SIGCONT)
                await view.until(*TERMINATED)
                await stream.until(*TERMINATED)
        assert numbers(view.body) == list(range(40))
        assert numbers(stream.body) == list(range(40)), "the viewers of the old producer, too"
        assert (await health_of(one))["running"] == 0
        assert (await health_of(other))["restarts"] == 1


async def test_a_worker_that_shuts_down_hands_its_runs_over_before_its_lease_expires(
    store_url: str, gate: anyio.Path
) -> None:
    path = f"/streams/gated?gate={gate}"
    with worker_processes(2, with_lease(store_url, 3600)) as ((one, process), (other, _)):
        async with connection(one, path) as stream:
            await stream.until(*NUMBER_19)
            async with connection(other, f"/runs/{stream.run}") as view:
                await view.until(*NUMBER_19)
                process.send_signal(signal.SIGTERM)
                await stream.to_the_end(15)
                await exit_of(process, 15)
                await until_restarted(other)
                headers = f"Last-Event-ID: {last_id(stream.body)}\r\n"
                async with connection(other, path, headers=headers) as again:
                    await gate.touch()
                    await again.until(*TERMINATED)
                await view.until(*TERMINATED)
    assert numbers(view.body) == list(range(40))
    assert numbers(stream.body) + numbers(again.body) == list(range(40))


async def test_a_new_worker_continues_the_runs_when_all_workers_have_shut_down(
    store_url: str, gate: anyio.Path
) -> None:
    path = f"/streams/gated?gate={gate}"
    with worker_processes(1, store_url, retain=1) as ((one, process),):
        async with connection(one, path) as stream:
            await stream.until(*NUMBER_19)
            process.send_signal(signal.SIGTERM)
            await stream.to_the_end(15)
        await exit_of(process, 15)
    log = shared_log(store_url)
    assert (await log.find(stream.run)).status == "running"
    await log.aclose()
    with worker_processes(1, store_url) as ((other, _),):
        await until_restarted(other)
        headers = f"Last-Event-ID: {last_id(stream.body)}\r\n"
        async with connection(other, path, headers=headers) as again:
            await gate.touch()
            await again.until(*TERMINATED)
        assert numbers(stream.body) + numbers(again.body) == list(range(40))
        await until(lambda: not remains(store_url), "the store holds nothing of a run", 20)
