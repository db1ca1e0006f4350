"""The lifespan of a Streams, and what a server that stops does with one and without one."""

import asyncio
import gc
import re
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient

from streams import Source, StreamError, Streams, lifetime, run, source
from streams.errors import TooManyRequests
from streams.log import RunLog
from streams.sources import counter
from tests.support.servers import (
    Connection,
    client_of,
    connection,
    every_event,
    exit_of,
    free_port,
    process_group,
    served,
    server_process,
    serving,
    until,
)

HALF = "half an answer"
EVENT_SOURCE = "Accept: text/event-stream\r\nCache-Control: no-cache\r\n"


def has_half(stream: Connection) -> bool:
    return HALF.encode() in stream.body


# A server that shuts down


@pytest.mark.parametrize(
    ("app", "path", "warnings"),
    [
        ("mounted", "/live/streams/answer", 1),
        ("mounted", "/ask", 1),
        ("with_lifespan", "/live/streams/answer", 0),
        ("with_lifespan", "/ask", 0),
        ("alone", "/streams/answer", 0),
    ],
)
async def test_sources_are_closed_at_sigterm_with_a_lifespan_and_without_one(
    app: str, path: str, warnings: int, tmp_path: Path
) -> None:
    """The warning comes once, and says what to add."""
    saved, port = tmp_path / "saved", free_port()
    url = f"http://127.0.0.1:{port}"
    app = f"tests.support.stopping:{app}"
    with server_process(port, app=app, SAVED=str(saved)) as process:
        async with connection(url, path) as stream, connection(url, path) as other:
            await stream.until(has_half, "half an answer has arrived")
            await other.until(has_half, "half an answer has arrived")
            process.terminate()
            await stream.to_the_end(20)
            await other.to_the_end(20)
        await exit_of(process, 20)
        assert process.stderr
        log = process.stderr.read()
    assert saved.read_text() == HALF
    assert stream.terminated
    assert b"event: end" not in stream.body
    assert log.count("lifespan=streams.lifespan") == warnings
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("app", "options", "warnings"),
    [("mounted", ["--workers", "2"], 1), ("with_lifespan", [], 1), ("mounted", ["--reload"], 0)],
)
async def test_several_workers_without_a_shared_log_say_once_what_to_set(
    app: str, options: list[str], warnings: int, tmp_path: Path
) -> None:
    log, port = tmp_path / "log", free_port()
    command = [sys.executable, "-m", "uvicorn", f"tests.support.stopping:{app}"]
    command += ["--port", str(port), *options]
    workers: set[str] = set()
    with process_group(command, log, WEB_CONCURRENCY="2") as process:
        await served(process, log, port)
        with anyio.fail_after(20):
            while len(workers) < (1 if "--reload" in options else 2):
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                    workers.add((await client.get("/live/health")).json()["worker"])
        text = log.read_text()
    assert text.count('Give them one log: Streams(log="sqlite:runs.db")') == warnings
    assert text.count("lifespan=streams.lifespan") == (len(workers) if app == "mounted" else 0)


async def test_a_source_without_a_reader_is_closed_at_sigterm(tmp_path: Path) -> None:
    saved, port = tmp_path / "saved", free_port()
    url = f"http://127.0.0.1:{port}"
    app = "tests.support.stopping:mounted"
    with server_process(port, app=app, SAVED=str(saved)) as process:
        async with connection(url, "/live/streams/answer") as stream:
            await stream.until(has_half, "half an answer has arrived")
        async with httpx.AsyncClient(base_url=url) as client:
            readers = 1
            while readers:
                readers = (await client.get("/live/health")).json()["readers"]
        process.terminate()
        await exit_of(process, 20)
    assert saved.read_text() == HALF


@pytest.mark.parametrize("app", ["mounted", "with_lifespan"])
async def test_a_server_that_stops_after_max_requests_ends_its_streams(
    app: str, tmp_path: Path
) -> None:
    saved, port = tmp_path / "saved", free_port()
    url = f"http://127.0.0.1:{port}"
    app = f"tests.support.stopping:{app}"
    with server_process(port, "--limit-max-requests", "2", app=app, SAVED=str(saved)) as process:
        async with connection(url, "/ask") as stream:
            await stream.until(has_half, "half an answer has arrived")
            async with httpx.AsyncClient(base_url=url) as client:
                for _ in range(2):  # uvicorn counts the responses that are complete.
                    assert (await client.get("/hello")).status_code == 200
            await stream.to_the_end(20)
        assert await exit_of(process, 20) == 0
    assert stream.terminated
    assert b"event: end" not in stream.body
    assert saved.read_text() == HALF


@pytest.mark.parametrize("app", ["mounted", "with_lifespan"])
async def test_an_opening_is_cancelled_at_sigterm_and_its_client_gets_a_503(
    app: str, tmp_path: Path
) -> None:
    saved, port = tmp_path / "saved", free_port()
    url, path = f"http://127.0.0.1:{port}", "/live/streams/slow"
    app = f"tests.support.stopping:{app}"
    with server_process(port, app=app, SAVED=str(saved)) as process:
        async with (
            connection(url, path) as client,
            connection(url, path, headers=EVENT_SOURCE) as event_source,
            httpx.AsyncClient(base_url=url) as other,
        ):
            running = 0
            while running < 2:
                running = (await other.get("/live/health")).json()["running"]
            process.terminate()
            await client.to_the_end(20)
            await event_source.to_the_end(20)
        await exit_of(process, 20)
    assert client.head.startswith("http/1.1 503")
    assert re.search("retry-after: [12]\r\n", client.head + "\r\n")
    assert event_source.head.startswith("http/1.1 200")
    assert re.search(rb"retry: (1\d\d\d|2000)\n$", event_source.received)
    assert saved.read_text() == "the opening was cancelled"


async def test_a_request_whose_body_ends_while_the_server_stops_is_refused() -> None:
    """Its source would open for as long as it likes, and the server would wait."""
    opened = 0

    @source
    async def slow() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        await asyncio.sleep(3600)
        raise AssertionError

    streams = Streams([slow])
    server = uvicorn.Server(uvicorn.Config(streams, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the server has started")
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    head = "POST /streams/slow HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: 2\r\n\r\n{{".encode())
    await until(lambda: server.server_state.tasks, "the request has arrived")
    await asyncio.sleep(0)
    server.should_exit = True
    await until(lambda: streams.runs.stopping, "the server stops")
    writer.write(b"}")
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 503")
    await asyncio.wait_for(task, 5)
    writer.close()
    assert not opened


class Answers:
    """A source that saves half an answer when it is closed, after a moment."""

    def __init__(self) -> None:
        self.saved: list[str] = []

        @source(linger=None)
        async def answer() -> AsyncIterator[str]:
            try:
                yield HALF
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                self.saved.append(HALF)

        self.streams = Streams([answer])


async def test_a_server_in_a_thread_ends_its_streams_and_stops() -> None:
    answers = Answers()
    config = uvicorn.Config(answers.streams, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    await until(lambda: server.started, "the server has started", 20)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with connection(f"http://127.0.0.1:{port}", "/streams/answer") as stream:
        await stream.until(has_half, "half an answer has arrived")
        server.should_exit = True
        await stream.to_the_end(20)
        assert stream.terminated
    await until(lambda: not thread.is_alive(), "the thread has ended", 20)
    assert answers.saved == [HALF]


async def test_a_second_ctrl_c_does_not_wait_until_sources_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stopped(self: lifetime.Lifetime) -> None:
        waits.set()
        await original(self)

    original, waits = lifetime.Lifetime.stopped, asyncio.Event()
    monkeypatch.setattr(lifetime.Lifetime, "stopped", stopped)
    monkeypatch.setattr(run, "CLEANUP_SECONDS", 3600)
    gate, ended = asyncio.Event(), asyncio.Event()

    @source(linger=None)
    async def slow() -> AsyncIterator[str]:
        try:
            yield HALF
            await asyncio.sleep(3600)
        finally:
            await gate.wait()
            ended.set()

    config = uvicorn.Config(Streams([slow]), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the server has started")
    port = server.servers[0].sockets[0].getsockname()[1]
    async with connection(f"http://127.0.0.1:{port}", "/streams/slow") as stream:
        await stream.until(has_half, "half an answer has arrived")
    server.should_exit = True  # Ctrl-C sets this, and a second one force_exit.
    await asyncio.wait_for(waits.wait(), 20)
    server.force_exit = True
    await asyncio.wait_for(task, 20)
    gate.set()
    await asyncio.wait_for(ended.wait(), 20)


async def test_a_server_that_stops_leaves_the_streams_of_another_one_alone() -> None:
    one, two = Answers(), Answers()
    async with (
        serving(two.streams, lifespan="off") as their_url,
        AsyncExitStack() as their_viewer,
    ):
        async with (
            serving(one.streams, lifespan="off") as our_url,
            connection(our_url, "/streams/answer") as ours,
        ):
            theirs = connection(their_url, "/streams/answer")
            stream = await their_viewer.enter_async_context(theirs)
            await stream.until(has_half, "half an answer has arrived")
            await ours.until(has_half, "half an answer has arrived")
        assert one.saved == [HALF]
        assert two.saved == []
        assert two.streams.log.readers == 1
    assert two.saved == [HALF]


async def test_a_server_is_found_behind_middleware_that_uses_tasks_of_its_own() -> None:
    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    answers = Answers()
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=dispatch)]
    app = Starlette(routes=[Mount("/", answers.streams)], middleware=middleware)
    async with serving(app) as url, connection(url, "/streams/answer") as stream:
        await stream.until(has_half, "half an answer has arrived")
    assert answers.saved == [HALF]


async def test_a_request_that_reaches_a_server_late_is_refused_while_that_stops() -> None:
    """It has waited in a middleware until then."""
    arrived, gate = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["query_string"]:
            arrived.set()
            await gate.wait()
        await answers.streams({**scope, "query_string": b""}, receive, send)

    answers = Answers()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started, "the server has started")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    async with (
        connection(url, "/streams/answer") as stream,
        connection(url, "/streams/answer?late") as late,
    ):
        await stream.until(has_half, "half an answer has arrived")
        await arrived.wait()
        server.should_exit = True
        await stream.to_the_end(20)
        await until(lambda: answers.saved, "the source is closed")
        gate.set()
        await late.to_the_end(20)
    await asyncio.wait_for(task, 20)
    assert late.head.startswith("http/1.1 503")
    assert answers.saved == [HALF]


async def test_a_server_that_starts_after_the_first_run_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifetime, "SEARCH_SECONDS", 0)
    answers = Answers()
    await started(answers.streams, answers.streams.sources["answer"])
    async with (
        serving(answers.streams, lifespan="off") as url,
        connection(url, "/streams/answer") as stream,
    ):
        await stream.until(has_half, "half an answer has arrived")
    assert answers.saved == [HALF] * 2


async def test_two_servers_one_after_another_serve_the_same_streams() -> None:
    answers = Answers()
    for n in (1, 2):
        async with (
            serving(answers.streams, lifespan="off") as url,
            connection(url, "/streams/answer") as stream,
        ):
            await stream.until(has_half, "half an answer has arrived")
        assert answers.saved == [HALF] * n
    async with answers.streams:
        for n in (3, 4):
            async with serving(answers.streams) as url:
                async with connection(url, "/streams/answer") as stream:
                    await stream.until(has_half, "half an answer has arrived")
            assert answers.saved == [HALF] * 2, n
    assert answers.saved == [HALF] * 4


async def test_a_shutdown_does_not_interrupt_a_cleanup_that_has_begun() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    saved = False

    @source(linger=None)
    async def answer() -> AsyncIterator[str]:
        nonlocal saved
        try:
            yield HALF
            await asyncio.sleep(3600)
        finally:
            begun.set()
            await gate.wait()
            saved = True

    streams = Streams([answer])
    async with streams:
        log = await streams.runs.start(await answer.job({}, None, policy=streams.policy))
        await until(lambda: log.last == 1, "the event is there")
        await streams.runs.cancel(log)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.01, gate.set)
    assert saved


# Opening and closing


async def test_a_lifespan_inside_another_one_closes_nothing() -> None:
    """A host may run the lifespan of what it mounts in addition to its own."""
    answers = Answers()
    async with answers.streams as entered:
        assert entered is answers.streams
        async with serving(answers.streams) as url, connection(url, "/streams/answer") as stream:
            await stream.until(has_half, "half an answer has arrived")
            async with answers.streams.lifespan(None) as state:
                assert state is None
            assert answers.saved == []
    assert answers.saved == [HALF]


def test_a_host_with_the_lifespan_can_be_started_again_in_another_event_loop() -> None:
    streams = Streams([counter])
    host = Starlette(routes=[Mount("/live", streams)], lifespan=streams.lifespan)
    for _ in range(3):
        with TestClient(host) as client:
            for _ in range(2):
                response = client.get("/live/streams/counter?count=2&interval=0")
                assert response.text.count("number") == 2


async def test_one_warning_says_that_the_lifespan_is_not_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client_of(Streams([counter])) as client:
        await every_event(client, "/streams/counter?count=1")
    assert caplog.messages == []
    async with client_of(Streams([counter]), lifespan="off") as client:
        for _ in range(3):
            await every_event(client, "/streams/counter?count=1")
    assert caplog.messages == [lifetime.NO_LIFESPAN]


# Several event loops


async def started(streams: Streams, source: Source[..., Any]) -> RunLog:
    """Starts a run as a request does."""
    await streams._lifetime.serve()
    policy = streams._policies[source]
    return await streams.runs.start(await source.job({}, None, policy=policy))


class Left:
    """A shared source with a viewer, in an event loop that was closed while both waited."""

    def __init__(self) -> None:
        opened = 0

        @source(shared=True, linger=None)
        async def news() -> AsyncIterator[int]:
            nonlocal opened
            opened += 1
            yield opened
            await asyncio.sleep(3600)

        self.streams = Streams([news])
        loop = asyncio.new_event_loop()
        self.log = loop.run_until_complete(self.leave())
        loop.close()

    async def leave(self) -> RunLog:
        log = await self.start()
        self.viewer = asyncio.create_task(self.view(log))
        await until(lambda: log.last == 1 and log.readers, "the viewer waits for event 2")
        return log

    async def start(self) -> RunLog:
        news = self.streams.sources["news"]
        return await started(self.streams, news)

    async def view(self, log: RunLog) -> None:
        with log.read(-1) as reader:
            async for _ in reader:
                pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shared_source_starts_again_after_its_event_loop_was_closed() -> None:
    left = Left()

    async def again() -> None:
        async with serving(left.streams) as url:
            async with connection(url, "/streams/news") as stream:
                await stream.until(lambda s: b"data: 2\n" in s.body, "the new run's event")
            async with httpx.AsyncClient(base_url=url) as client:
                assert (await client.get(f"/runs/{left.log.info.run}")).status_code == 404
                assert (await client.get("/health")).json()["runs"] == 1

    asyncio.run(again())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shared_source_that_waits_for_a_reader_starts_again_after_its_event_loop_was_closed() -> (
    None
):
    @source(shared=True, window=100)
    async def flood() -> AsyncIterator[str]:
        while True:
            yield "x" * 50

    async def start() -> None:
        log = await started(streams, flood)
        logs.append(log)
        readers.append(log.read(-1))
        readers[-1].__enter__()
        await until(lambda: log.is_full(), "the source waits")

    streams = Streams([flood])
    logs: list[RunLog] = []
    readers: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    asyncio.run(start())
    assert logs[0] is not logs[1]
    assert streams.runs.health()["runs"] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("waits", [False, True])
def test_an_opening_that_a_closed_event_loop_has_left_is_closed_as_far_as_that_is_possible(
    waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    closed = 0

    @source(shared=True)
    async def slow() -> AsyncIterator[int]:
        nonlocal closed
        try:
            await asyncio.sleep(3600)
        finally:
            closed += 1
            if waits:
                await asyncio.sleep(1)
        raise AssertionError

    async def start() -> None:
        tasks.append(asyncio.create_task(started(streams, slow)))
        await until(lambda: streams.runs.health()["running"], "the run opens")
        await asyncio.sleep(0)

    streams = Streams([slow])
    tasks: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    asyncio.run(start())
    assert closed == 2
    assert ("its event loop is closed, its source is not" in caplog.text) == waits


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_readers_of_a_closed_event_loop_are_not_counted() -> None:
    left = Left()
    asyncio.run(left.start())
    del left.viewer
    gc.collect()
    assert left.streams.log.readers == 0


def test_a_run_that_a_stopped_event_loop_has_left_gives_back_its_quota_once() -> None:
    @source
    async def ticks() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0)
            yield 1

    async def start() -> None:
        await streams._lifetime.serve()
        job = await ticks.job({}, None, policy=streams._policies[ticks])
        await streams.runs.start(msgspec.structs.replace(job, clients=["identity ann"]))

    streams = Streams([ticks], max_per_client=1)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(start())
    (left,) = streams.runs._producing
    second.run_until_complete(start())
    first.run_until_complete(asyncio.wait([left.task]))
    assert isinstance(left.task.exception(), RuntimeError), "its coroutine was closed"
    with pytest.raises(TooManyRequests):
        second.run_until_complete(start())
    second.run_until_complete(streams.runs.aclose())
    first.close()
    second.close()


def test_a_streams_in_two_event_loops_at_once_is_a_runtime_error() -> None:
    async def use() -> None:
        async with client_of(streams) as client:
            await every_event(client, "/streams/counter?count=1")

    async def main() -> None:
        await use()
        with pytest.raises(RuntimeError, match="make one for each"):
            await asyncio.to_thread(asyncio.run, streams._lifetime.serve())
        await use()

    streams = Streams([counter])
    asyncio.run(main())
    asyncio.run(use())


# Without asyncio


def driven(coroutine: Any) -> None:
    """Runs a coroutine that waits for nothing, in no event loop of asyncio, as under trio."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_without_asyncio_a_request_gets_a_problem_that_says_what_to_do() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "query_string": b"", "headers": []}
    for path in ("/streams/counter", "/runs/AAAAAAAAAAAAAAAAAAAAAA"):
        sent.clear()
        driven(Streams([counter])({**scope, "path": path}, receive, send))
        assert sent[0]["status"] == 500
        assert b"hypercorn -k asyncio" in sent[1]["body"]


def test_without_asyncio_the_lifespan_fails_with_what_to_do() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Streams([counter])({"type": "lifespan"}, receive, send)
    with pytest.raises(StreamError, match="hypercorn -k asyncio"):
        app.send(None)
    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "hypercorn -k asyncio" in sent[0]["message"]
