"""thread.py: plain generators as sources, each in a thread of its own."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from anyio import from_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import StreamError, Streams, source
from streams.errors import TooManyThreads
from streams.thread import Threads
from tests.support.servers import (
    Connection,
    client_of,
    connection,
    every_event,
    exit_of,
    free_port,
    retry_of,
    server_process,
    serving,
    until,
)

EVENT_SOURCE = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}


def has_event_1(stream: Connection) -> bool:
    return b"\ndata: 1\n\n" in stream.body


def ended(stream: Connection) -> bool:
    return stream.terminated


class Gate:
    """A generator function that yields 1 and then blocks its thread until `open` is set.

    It records the thread of each of its steps in `threads`, by the name of the step.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.closed = threading.Event()
        self.threads: dict[str, int] = {}

    def __call__(self) -> Iterator[int]:
        try:
            self.threads["first"] = threading.get_ident()
            yield 1
            self.threads["second"] = threading.get_ident()
            assert self.open.wait(30), "the test opens the gate"
            yield 2
        finally:
            self.threads["finally"] = threading.get_ident()
            self.closed.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def gated(gate: Gate, **options: Any) -> Any:
    @source(**options)
    def gated() -> Iterator[int]:
        yield from gate()

    return gated


def threads(streams: Streams) -> int:
    return int(streams.runs.health()["threads"])


async def delete(url: str, run: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.delete(f"/runs/{run}")).status_code == 204


@pytest.mark.parametrize("stop", ["DELETE", "linger", "shutdown"])
async def test_a_stop_during_a_blocking_call_closes_the_generator_after_that_call(
    stop: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    streams = Streams([gated(gate, linger=0.01)])
    async with (
        serving(streams) as url,
        connection(url, "/streams/gated") as stream,
        anyio.create_task_group() as stopping,
    ):
        await stream.until(has_event_1, "event 1 has arrived")
        await until(lambda: "second" in gate.threads, "the generator blocks")
        log = await streams.log.find(stream.run)
        if stop == "DELETE":
            await delete(url, stream.run)
        elif stop == "linger":
            stream.abort()
        else:
            stopping.start_soon(streams.runs.aclose)
        await until(lambda: log.status == "cancelled", "the run is cancelled")
        assert not gate.closed.is_set()
        assert threads(streams) == 1
        gate.open.set()
        await until(gate.closed.is_set, "the finally has run")
        await until(lambda: not threads(streams), "the thread has ended")
    assert len(set(gate.threads.values())) == 1
    assert threading.get_ident() not in gate.threads.values()
    assert caplog.text == ""


async def test_a_step_that_outlasts_the_cleanup_time_is_reported_and_its_thread_still_counts(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.run.CLEANUP_SECONDS", 0.05)
    streams = Streams([gated(gate)])
    async with serving(streams) as url, connection(url, "/streams/gated") as stream:
        await stream.until(has_event_1, "event 1 has arrived")
        await until(lambda: "second" in gate.threads, "the generator blocks")
        await delete(url, stream.run)
        await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
        assert caplog.messages == [
            f"run {stream.run}: source gated did not stop within 0.05 s; its thread is left running"
        ]
        assert threads(streams) == 1
        gate.open.set()
        await until(gate.closed.is_set, "the finally has run")
        await until(lambda: not threads(streams), "the thread has ended")
    assert len(set(gate.threads.values())) == 1


async def test_200_blocked_generators_leave_the_threads_of_the_host_alone() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with server_process(port, "--log-level", "info", app="tests.support.threads:host"):
        async with anyio.create_task_group() as views:
            opened = 0

            async def view() -> None:
                nonlocal opened
                async with connection(url, "/live/streams/gated") as stream:
                    await stream.until(has_event_1, "event 1 has arrived", 30)
                    opened += 1
                    await stream.until(ended, "the stream has ended", 30)
                    assert b"\ndata: 2\n\n" in stream.body

            for _ in range(200):
                views.start_soon(view)
            await until(lambda: opened == 200, "200 generators have begun", 30)
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                assert (await client.get("/live/health")).json()["threads"] == 200
                assert (await client.get("/live/page/index.html")).status_code == 200
                assert (await client.post("/open")).status_code == 200, "a `def` endpoint answers"


async def test_a_sqlite3_connection_can_be_used_across_yields_by_four_viewers() -> None:
    @source
    def rows(count: int) -> Iterator[int]:
        database = sqlite3.connect(":memory:")  # Only the thread that made it may use it.
        try:
            database.execute("CREATE TABLE numbers (number)")
            for number in range(count):
                database.execute("INSERT INTO numbers VALUES (?)", [number])
                yield database.execute("SELECT count(*) FROM numbers").fetchone()[0]
        finally:
            database.close()

    async with client_of(Streams([rows])) as client, anyio.create_task_group() as views:

        async def view(count: int) -> None:
            events = await every_event(client, f"/streams/rows?count={count}")
            assert [event.data for event in events[1:]] == [
                *(str(number + 1) for number in range(count)),
                '{"status":"completed"}',
            ]

        for count in (20, 30, 40, 50):
            views.start_soon(view, count)


async def test_a_context_variable_keeps_its_value_between_yields() -> None:
    var = ContextVar("var", default="outer")

    @source
    def contextual() -> Iterator[str]:
        yield var.get()
        token = var.set("inner")
        yield var.get()
        var.reset(token)
        yield var.get()

    async def endpoint(request: Request) -> Response:
        var.set("request")
        return streams.response(request, contextual())

    streams = Streams([contextual])
    app = Starlette(routes=[Route("/own", endpoint), Mount("/", streams)])
    async with client_of(app) as client:
        for path, outer in (("/streams/contextual", "outer"), ("/own", "request")):
            events = await every_event(client, path)
            assert [event.data for event in events[1:-1]] == [
                f'"{outer}"', '"inner"', f'"{outer}"',
            ]  # fmt: skip


async def test_from_thread_works_in_a_generator_and_in_its_finally() -> None:
    loop = asyncio.get_running_loop()
    closed: list[Any] = []

    async def double(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 2 * number

    @source
    def mixed() -> Iterator[int]:
        try:
            yield from_thread.run(double, 1)
            yield from_thread.run_sync(lambda: int(asyncio.get_running_loop() is loop))
            from_thread.check_cancelled()
            yield anyio.run(double, 3)
        finally:
            closed.append(from_thread.run(double, 2))

    async with client_of(Streams([mixed])) as client:
        events = await every_event(client, "/streams/mixed")
    assert [event.data for event in events[1:-1]] == ["2", "1", "6"]
    assert closed == [4]


async def test_check_cancelled_raises_in_a_step_after_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = threading.Event()

    @source
    def polls() -> Iterator[int]:
        try:
            yield 1
            while True:
                closed.wait(0.001)
                from_thread.check_cancelled()
        finally:
            closed.set()

    streams = Streams([polls])
    async with serving(streams) as url, connection(url, "/streams/polls") as stream:
        await stream.until(has_event_1, "event 1 has arrived")
        await delete(url, stream.run)
        await until(closed.is_set, "the finally has run")
        await until(lambda: not threads(streams), "the thread has ended")
    assert caplog.text == ""


async def test_check_cancelled_does_not_raise_while_the_generator_is_closed() -> None:
    steps: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            from_thread.check_cancelled()
            steps.append("closed")

    events: Any = Threads(1).iterate(numbers(), "run r of source s")
    assert await anext(events) == 1
    await events.aclose()
    assert steps == ["closed"]


async def test_a_first_step_that_blocks_does_not_hold_back_headers_and_heartbeats() -> None:
    gate = threading.Event()

    @source(heartbeat=0.01)
    def slow() -> Iterator[int]:
        assert gate.wait(30), "the test opens the gate"
        yield 1

    async with serving(Streams([slow])) as url, connection(url, "/streams/slow") as stream:
        await stream.until(lambda stream: b"\n\n:\n:\n" in stream.body, "heartbeats have arrived")
        assert b"event: start" in stream.body
        gate.set()
        await stream.until(ended, "the stream has ended")
        assert has_event_1(stream)


async def test_an_exception_in_the_first_step_becomes_the_status_of_the_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.run.FIRST_STEP_SECONDS", 20)

    @source
    def refuses() -> Iterator[int]:
        raise StreamError("not today", status=402)
        yield

    streams = Streams([refuses])
    async with client_of(streams) as client:
        response = await client.get("/streams/refuses")
        assert (response.status_code, response.json()["detail"]) == (402, "not today")
    await until(lambda: not threads(streams), "the thread has ended")
    assert len(streams.log) == 0


async def test_the_thread_takes_no_step_ahead_of_the_run() -> None:
    produced = 0

    @source(window=100_000)
    def flood() -> Iterator[str]:
        nonlocal produced
        while True:
            produced += 1
            yield "x" * 1000

    streams = Streams([flood])
    async with serving(streams) as url, connection(url, "/streams/flood") as stream:
        await stream.until(lambda stream: stream.body, "the body has begun")
        log = await streams.log.find(stream.run)
        with log.read(-1):  # This reader takes nothing.
            await until(lambda: log.is_full(), "the window is full")
            assert produced == log.last
            assert produced < 200
        await until(lambda: produced > 200, "the generator continues")
        await delete(url, stream.run)
        await until(lambda: not threads(streams), "the thread has ended")


async def test_a_subprocess_is_ended_by_the_finally_when_its_run_is_deleted() -> None:
    script = "import time\nwhile True: print(1, flush=True); time.sleep(0.01)"
    started: list[subprocess.Popen[str]] = []

    @source
    def output() -> Iterator[int]:
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            started.append(process)
            assert process.stdout
            try:
                for line in process.stdout:
                    yield int(line)
            finally:
                process.kill()

    streams = Streams([output])
    async with serving(streams) as url, connection(url, "/streams/output") as stream:
        await stream.until(has_event_1, "event 1 has arrived", 20)
        await delete(url, stream.run)
        await until(lambda: not threads(streams), "the thread has ended", 20)
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "lifespan"),
    [(signal.SIGINT, "on"), (signal.SIGTERM, "on"), (signal.SIGINT, "off")],
)
async def test_a_generator_that_waits_in_a_queue_does_not_keep_the_server_alive(
    number: signal.Signals, lifespan: str
) -> None:
    port = free_port()
    options = ["--lifespan", lifespan]
    with server_process(
        port, *options, app="tests.support.threads:app", CLEANUP_SECONDS="0.2"
    ) as process:
        async with connection(f"http://127.0.0.1:{port}", "/streams/stuck") as stream:
            await stream.until(has_event_1, "event 1 has arrived")
            process.send_signal(number)
            await stream.to_the_end(20)
            assert stream.terminated
        code = await exit_of(process, 20)
        assert process.stderr
        log = process.stderr.read()
    assert code in (0, -number, 128 + number)
    assert f"run {stream.run}: source stuck did not stop within 0.2 s" in log


async def test_at_max_threads_a_plain_generator_gets_a_503_and_an_event_source_a_retry(
    gate: Gate,
) -> None:
    closed: list[bool] = []

    class Watched:
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("a refused iterable is not iterated")

        def close(self) -> None:
            closed.append(True)

    @source
    async def asynchronous() -> AsyncIterator[int]:
        yield 1

    async def own(request: Request) -> Response:
        return streams.response(request, Watched())

    streams = Streams([gated(gate), asynchronous], max_threads=2)
    app = Starlette(routes=[Route("/own", own), Mount("/", streams)])
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        async with (
            connection(url, "/streams/gated") as one,
            connection(url, "/streams/gated") as two,
        ):
            await one.until(has_event_1, "event 1 has arrived")
            await two.until(has_event_1, "event 1 has arrived")
            for path in ("/streams/gated", "/own"):
                response = await client.get(path)
                assert response.status_code == 503
                assert response.headers["content-type"] == "application/problem+json"
                assert 10 <= int(response.headers["retry-after"]) <= 20
                assert "runs 2 plain generators" in response.json()["detail"]
                assert "(limit 2)" in response.json()["detail"]
            assert closed == [True]
            response = await client.get("/streams/gated", headers=EVENT_SOURCE)
            assert response.status_code == 200
            assert 10_000 <= retry_of(response) <= 20_000
            assert (await client.get("/streams/asynchronous")).status_code == 200
            assert threads(streams) == 2
            gate.open.set()
            await one.until(ended, "the stream has ended")
            await two.until(ended, "the stream has ended")
        await until(lambda: not threads(streams), "the threads have ended")
        assert len(await every_event(client, "/streams/gated")) == 4


async def test_a_thread_that_the_system_refuses_is_reported_like_max_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    counted = Threads(10)
    with pytest.raises(TooManyThreads, match="runs 0 plain generators") as caught:
        counted.iterate([1], "run r of source s")
    assert str(caught.value.__cause__) == "can't start new thread"
    assert len(counted) == 0


async def test_two_streams_count_their_threads_separately(gate: Gate) -> None:
    one, other = Streams([gated(gate)], max_threads=1), Streams([gated(gate)], max_threads=1)
    app = Starlette(routes=[Mount("/one", one), Mount("/other", other)])
    async with serving(app) as url:
        for path in ("/one", "/other"):
            async with connection(url, f"{path}/streams/gated") as stream:
                await stream.until(has_event_1, "event 1 has arrived")
        assert (threads(one), threads(other)) == (1, 1)
        gate.open.set()
        await until(lambda: not threads(one) + threads(other), "the threads have ended")


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
async def test_an_exception_in_a_step_after_the_stop_is_logged(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    waiting, gate = threading.Event(), threading.Event()

    @source
    def breaks() -> Iterator[int]:
        yield 1
        waiting.set()
        assert gate.wait(30), "the test opens the gate"
        raise kind("the device is gone")

    streams = Streams([breaks])
    async with serving(streams) as url, connection(url, "/streams/breaks") as stream:
        await stream.until(has_event_1, "event 1 has arrived")
        await until(waiting.is_set, "the generator blocks")
        await delete(url, stream.run)
        gate.set()
        await until(lambda: not threads(streams), "the thread has ended")
        await until(lambda: caplog.messages, "the exception is logged")
    assert caplog.messages == [f"run {stream.run} of source breaks failed after it was stopped"]
    assert kind.__name__ in caplog.text
    assert 'raise kind("the device is gone")' in caplog.text


async def test_an_exception_in_the_finally_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @source
    def breaks() -> Iterator[int]:
        try:
            yield 1
            yield from iter(int, 1)
        finally:
            raise ValueError("cannot close")

    streams = Streams([breaks])
    async with serving(streams) as url, connection(url, "/streams/breaks") as stream:
        await stream.until(has_event_1, "event 1 has arrived")
        await delete(url, stream.run)
        await until(lambda: not threads(streams), "the thread has ended")
        await until(lambda: caplog.messages, "the exception is logged")
    assert caplog.messages == [f"run {stream.run}: closing its source failed"]
    assert "ValueError: cannot close" in caplog.text


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
async def test_a_stop_iteration_raised_by_a_generator_fails_its_run(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    @source
    def breaks() -> Iterator[int]:
        yield 1
        raise kind

    async with client_of(Streams([breaks])) as client:
        events = await every_event(client, "/streams/breaks")
    assert events[-1].json()["status"] == "failed"
    assert events[-1].json()["error"]["type"] == "RuntimeError"
    assert kind.__name__ in caplog.text


async def test_what_would_end_the_process_fails_only_the_run_of_a_plain_generator() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        with server_process(port, app="tests.support.exits:app") as process:
            async with connection(url, "/streams/other") as other:
                await other.until(has_event_1, "event 1 has arrived")
                for how in ("exit", "interrupt"):
                    path = f"/streams/plain?how={how}&when="
                    for when in ("first", "later", "finally"):
                        assert "failed" in (await client.get(f"{path}{when}")).text
                    async with connection(url, f"{path}stop") as stream:
                        await stream.until(has_event_1, "event 1 has arrived")
                        await delete(url, stream.run)
                        await stream.until(ended, "the stream has ended")
                        assert b'"cancelled"' in stream.body
                await client.get("/streams/go")
                await other.until(ended, "the other stream has ended")
                assert b"\ndata: 2\n\n" in other.body
            with anyio.fail_after(20):  # until all threads have ended
                while (await client.get("/health")).json()["threads"]:
                    await anyio.sleep(0.01)
            process.terminate()
            await exit_of(process, 20)
            assert process.stderr
            log = process.stderr.read()
    assert log.count("of source plain failed: 3") == 3
    assert log.count("of source plain failed: a plain generator raised KeyboardInterrupt") == 3
    assert log.count("closing its source failed") == 2


async def test_an_iterator_that_is_closed_before_its_first_step_is_not_started() -> None:
    steps: list[str] = []

    class Events:
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("no step was asked for")

        def close(self) -> None:
            steps.append(threading.current_thread().name)

    counted = Threads(1)
    events: Any = counted.iterate(Events(), "run r of source s")
    await events.aclose()
    assert steps == ["run r of source s"]
    assert len(counted) == 0


@pytest.mark.parametrize("produced", [3, None])
async def test_the_error_for_a_value_that_is_not_iterable_names_its_type(produced: Any) -> None:
    with pytest.raises(TypeError, match=f"not a {type(produced).__name__}"):
        Threads(1).iterate(produced, "run r of source s")


def test_a_generator_is_closed_if_its_event_loop_is_closed_during_a_step(gate: Gate) -> None:
    counted = Threads(1)

    async def start() -> None:
        events = counted.iterate(gate(), "run r of source s")
        assert await anext(events) == 1
        anext(events)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    assert not gate.closed.is_set()
    gate.open.set()
    assert gate.closed.wait(10), "the finally has run"
