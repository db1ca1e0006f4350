"""run.py: every way in which a run ends, and what is left of it."""

import asyncio
import contextvars
import functools
import gc
import logging
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, cast

import anyio
import anyio.lowlevel
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from streams import MemoryLog, StreamError, Streams, source
from streams.job import Job
from streams.log import RunLog
from streams.policy import Policy
from streams.runs import Runs
from streams.wires import EventStream
from tests.log.shared.workers import kill
from tests.support.servers import (
    Connection,
    client_of,
    connection,
    every_event,
    exit_of,
    free_port,
    server_process,
    serving,
    until,
)
from tests.support.stores import shared_log
from tests.support.virtual_time import run_in_virtual_time


class Panic(BaseException):
    """What an extension in Rust raises when it panics."""


async def await_a_cancelled_task() -> None:
    task = asyncio.ensure_future(anyio.sleep_forever())
    task.cancel()
    await task


async def panic() -> None:
    raise Panic("out of bounds")


async def exit_process() -> None:
    sys.exit(3)


async def close_itself() -> None:
    raise GeneratorExit


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


async def raise_unprintable() -> None:
    raise Unprintable


async def test_a_preface_precedes_the_events_of_the_source() -> None:
    @source
    async def word() -> AsyncIterator[str]:
        yield "one"

    streams = Streams([word])

    async def answer(request: Request) -> Response:
        preface = (b"request", b'{"asked":1}')
        log = await streams.start(request, word, {}, preface=preface)
        return streams.read(request, log, word, EventStream((1, 1)))

    app = Starlette(routes=[Route("/word", streams.endpoint(answer))], lifespan=streams.lifespan)
    async with client_of(app) as client:
        events = await every_event(client, "/word")
    named = [(event.event, event.data) for event in events[1:3]]
    assert named == [("request", '{"asked":1}'), ("message", '"one"')]


UNUSUAL = [await_a_cancelled_task, panic, exit_process, close_itself, raise_unprintable]
Failing = Callable[[], Awaitable[None]]


@pytest.mark.parametrize("fail", UNUSUAL)
async def test_any_exception_but_a_keyboard_interrupt_fails_the_run(
    fail: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    @source
    async def unusual() -> AsyncIterator[int]:
        yield 1
        await anyio.lowlevel.checkpoint()
        await fail()

    async with client_of(Streams([unusual])) as client:
        events = await every_event(client, "/streams/unusual")
        assert (await client.get("/health")).status_code == 200, "the server goes on"
    assert [event.event for event in events] == ["start", "message", "end"]
    assert events[-1].json()["status"] == "failed"
    assert f"run {events[0].json()['run']} of source unusual failed" in caplog.text


@pytest.mark.parametrize("fail", UNUSUAL)
@pytest.mark.parametrize("opens", [True, False])
async def test_any_exception_but_a_keyboard_interrupt_before_the_first_event_is_a_500(
    fail: Failing, opens: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def generator() -> AsyncIterator[int]:
        await fail()
        yield 1

    @source
    async def unusual() -> AsyncIterator[int]:
        if opens:
            await fail()
        return generator()

    streams = Streams([unusual])
    async with client_of(streams) as client:
        response = await client.get("/streams/unusual", timeout=10)
    assert response.status_code == 500
    assert "of source unusual failed" in caplog.text
    assert not len(streams.log)


def test_a_keyboard_interrupt_in_a_source_goes_up_and_fails_the_run() -> None:
    logs = []

    @source
    async def interrupted() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(0.01)
        raise KeyboardInterrupt

    async def main() -> None:
        streams = Streams([interrupted])
        job = await interrupted.job({}, None, policy=streams.policy)
        logs.append(await streams.runs.start(job))
        await anyio.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert logs[0].status == "failed"


def test_a_run_whose_event_loop_ends_is_cancelled_by_the_shutdown() -> None:
    logs = []

    @source
    async def endless() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    async def main() -> None:
        streams = Streams([endless])
        logs.append(await streams.runs.start(await endless.job({}, None, policy=streams.policy)))

    asyncio.run(main())
    assert logs[0].status == "cancelled"


@pytest.mark.parametrize("library", ["anyio", "asyncio"])
async def test_a_system_exit_in_a_child_task_ends_the_process_but_completes_all_responses(
    library: str,
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with server_process(port, app="tests.support.exits:app") as process:
        async with (
            connection(url, f"/streams/group?library={library}") as stream,
            connection(url, "/streams/other") as other,
            httpx.AsyncClient(base_url=url) as client,
        ):
            for each in (stream, other):
                await each.until(lambda each: b"data: 1" in each.body, "event 1 has arrived", 20)
            with suppress(httpx.HTTPError):
                await client.get("/streams/go?of=group")
            for each in (stream, other):
                await each.until(lambda each: each.terminated, "the response is complete", 20)
        assert await exit_of(process, 20) == 3


# Task groups and cancel scopes around a `yield`


async def in_anyio_group(closed: list[str]) -> AsyncIterator[str]:
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            while True:
                yield "x" * 100
    finally:
        await anyio.sleep(0.001)
        closed.append("anyio")


async def in_asyncio_group(closed: list[str]) -> AsyncIterator[str]:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(anyio.sleep_forever())
            while True:
                yield "x" * 100
    finally:
        await anyio.sleep(0.001)
        closed.append("asyncio")


async def in_scopes(closed: list[str]) -> AsyncIterator[str]:
    try:
        with anyio.CancelScope(), anyio.fail_after(60):
            async with asyncio.timeout(60):
                while True:
                    yield "x" * 100
    finally:
        await anyio.sleep(0.001)
        closed.append("scopes")


async def nested(closed: list[str]) -> AsyncIterator[str]:
    try:
        async with asyncio.TaskGroup() as group, anyio.create_task_group() as inner:
            group.create_task(anyio.sleep_forever())
            inner.start_soon(anyio.sleep_forever)
            with anyio.CancelScope():
                async with asyncio.timeout(60), asyncio.TaskGroup() as innermost:
                    innermost.create_task(anyio.sleep_forever())
                    while True:
                        yield "x" * 100
    finally:
        await anyio.sleep(0.001)
        closed.append("nested")


async def waiting(closed: list[str]) -> AsyncIterator[str]:
    try:
        async with asyncio.TaskGroup() as outer, anyio.create_task_group() as group:
            outer.create_task(anyio.sleep_forever())
            group.start_soon(anyio.sleep_forever)
            yield "x" * 100
            await anyio.sleep_forever()
    finally:
        await anyio.sleep(0.001)
        closed.append("waiting")


Scoped = Callable[[list[str]], AsyncIterator[str]]


def delegating_to(inner: Scoped) -> Scoped:
    async def delegating(closed: list[str]) -> AsyncIterator[str]:
        async with aclosing(innermost(closed)) as values:
            async for value in values:
                yield value

    async def innermost(closed: list[str]) -> AsyncGenerator[str]:
        async with aclosing(cast(AsyncGenerator[str], inner(closed))) as values:
            async for value in values:
                yield value

    delegating.__name__ = f"delegating_to_{inner.__name__}"
    return delegating


DIRECT = [in_anyio_group, in_asyncio_group, in_scopes, nested, waiting]
SCOPED = [*DIRECT, *map(delegating_to, DIRECT)]


async def stop(client: httpx.AsyncClient, stream: Connection, streams: Streams) -> None:
    await client.delete(f"/runs/{stream.run}")


async def leave(client: httpx.AsyncClient, stream: Connection, streams: Streams) -> None:
    stream.abort()


async def shut_down(client: httpx.AsyncClient, stream: Connection, streams: Streams) -> None:
    await streams.runs.aclose()


@pytest.mark.parametrize("end", [stop, leave, shut_down])
@pytest.mark.parametrize("scoped", SCOPED, ids=lambda scoped: scoped.__name__)
async def test_a_source_in_a_task_group_or_scope_is_closed_without_an_error(
    scoped: Scoped, end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []

    @source(window=1000, linger=0)
    async def scoping() -> AsyncIterator[str]:
        return scoped(closed)

    streams = Streams([scoping])
    async with (
        serving(streams, lifespan="on") as url,
        httpx.AsyncClient(base_url=url) as client,
        connection(url, "/streams/scoping", receive_buffer=4096) as stream,
    ):
        await stream.until(lambda stream: b"xxx" in stream.body, "an event has arrived")
        log = await streams.log.find(stream.run)
        await end(client, stream, streams)
        await until(lambda: closed, "the source is closed")
        await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
    assert log.status == "cancelled"
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_child_that_fails_while_the_source_is_suspended_at_a_yield_fails_the_run() -> None:
    gate, closed = asyncio.Event(), []

    async def child() -> None:
        await gate.wait()
        raise StreamError("the child failed")

    @source(window=1000)
    async def group() -> AsyncIterator[str]:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)
                while True:
                    yield "x" * 100
        finally:
            closed.append(True)

    streams = Streams([group])
    log = await streams.runs.start(
        await group.job({}, None, policy=streams.policy.replace(group.policy, ""))
    )
    await until(lambda: log.is_full(), "the source waits for a reader")
    gate.set()
    await until(lambda: log.status == "failed", "the run has failed")
    assert closed
    assert "the child failed" in await body_of(log)


async def started(source: Any) -> Any:
    """The log of a new run of `source`, which has no reader."""
    streams = Streams()
    policy = streams.policy.replace(source.policy, "a test")
    return await streams.runs.start(await source.job({}, None, policy=policy))


async def body_of(log: Any) -> str:
    """All frames of a run that has ended."""
    with log.read(-1) as reader, anyio.fail_after(5):
        return b"".join([frames async for frames in reader]).decode()


@pytest.mark.parametrize("library", ["anyio", "asyncio"])
async def test_a_timeout_around_a_yield_ends_what_is_inside_it(library: str) -> None:
    @source(window=1000)
    async def limited() -> AsyncIterator[str]:
        if library == "anyio":
            with anyio.move_on_after(0.01):
                while True:
                    yield "x" * 100
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    while True:
                        yield "x" * 100
        yield "after the timeout"

    log = await started(limited)
    # On a busy machine the source may be so slow that it ends before it has to wait for room.
    await until(lambda: log.closed or b"after" in newest(log), "the timeout is over")
    body = await body_of(log)
    assert '"after the timeout"' in body
    assert body.endswith('data: {"status":"completed"}\n\n')


def newest(log: Any) -> bytes:
    frames, _ = log.buffer.slice(log.last - 1, 1000)
    return bytes(frames)


async def test_a_cleanup_that_ignores_its_interruption_is_interrupted_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.run.CLEANUP_SECONDS", 0.02)
    interruptions = 0

    @source
    async def stubborn() -> AsyncIterator[int]:
        nonlocal interruptions
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            while interruptions < 3:
                try:
                    await anyio.sleep_forever()
                except asyncio.CancelledError:
                    interruptions += 1

    streams = Streams([stubborn])
    log = await streams.runs.start(await stubborn.job({}, None, policy=streams.policy))
    await streams.runs.cancel(log)
    await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
    assert interruptions == 3
    assert caplog.text.count("did not stop within 0.02 s") == 3


async def test_the_aclose_of_an_iterator_that_takes_too_long_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.run.CLEANUP_SECONDS", 0.02)

    class Events:
        def __aiter__(self) -> "Events":
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            await anyio.sleep_forever()

    @source
    async def slow() -> Events:
        return Events()

    streams = Streams([slow])
    log = await streams.runs.start(await slow.job({}, None, policy=streams.policy))
    await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
    assert log.status == "completed"
    assert "did not stop within 0.02 s" in caplog.text


async def test_an_iterator_whose_close_is_async_is_closed() -> None:
    closed: list[str] = []

    class Events:
        """Like the streams of some clients of LLMs: it has no `aclose`."""

        def __aiter__(self) -> "Events":
            return self

        async def __anext__(self) -> int:
            await anyio.sleep_forever()
            raise StopAsyncIteration

        async def close(self) -> None:
            await anyio.lowlevel.checkpoint()
            closed.append("closed")

    @source
    async def upstream() -> Events:
        return Events()

    streams = Streams([upstream])
    log = await streams.runs.start(await upstream.job({}, None, policy=streams.policy))
    await streams.runs.cancel(log)
    await until(lambda: closed, "the iterator is closed")
    assert log.status == "cancelled"


# What is left of a run


class Big:
    """An object that a source holds."""


request_variable: contextvars.ContextVar[Any] = contextvars.ContextVar("request_variable")


@pytest.mark.parametrize("how", ["completes", "fails", "stops", "refuses", "iterator"])
async def test_nothing_but_its_events_is_kept_of_a_run_that_has_ended(how: str) -> None:
    kept: list[weakref.ref[Any]] = []

    def big() -> Big:
        value = Big()
        kept.append(weakref.ref(value))
        return value

    class Events:
        def __init__(self) -> None:
            self.big = big()
            self.left = 1

        def __aiter__(self) -> "Events":
            return self

        async def __anext__(self) -> int:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return 1

    async def generator(argument: Big) -> AsyncIterator[int]:
        local = big()
        if how == "refuses":
            raise ValueError("broken", argument)
        yield 1
        if how == "fails":
            raise ValueError("broken", local)
        if how == "stops":
            await anyio.sleep_forever()

    async def open_source(argument: Big) -> AsyncIterator[int]:
        return Events() if how == "iterator" else generator(argument)

    async def request() -> Any:
        request_variable.set(big())
        argument = big()
        opener = functools.partial(open_source, argument)
        job = Job(source="big", policy=streams.policy, open=opener)
        try:
            log = await streams.runs.start(job)
        except StreamError:
            return None
        with log.read(-1) as reader:
            await anext(aiter(reader))
        if how == "stops":
            await streams.runs.cancel(log)
        return log

    logging.getLogger("streams").disabled = True  # pytest keeps what is logged.
    try:
        streams = Streams()
        with gc_disabled():
            log = await asyncio.create_task(request())
            await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
            await asyncio.sleep(0)
            assert len(kept) >= 3
            left = [ref() for ref in kept if ref() is not None]
    finally:
        logging.getLogger("streams").disabled = False
    assert left == []
    if how != "refuses":
        assert "event: end" in await body_of(log)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Without the garbage collector, a reference cycle keeps what it refers to."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Shared runs


@pytest.mark.parametrize("events", [[{"final": True}], [0, 1, 2]])
async def test_the_viewer_who_starts_a_shared_run_gets_all_its_events(events: list[Any]) -> None:
    @source(shared=True)
    async def short() -> AsyncIterator[Any]:
        for event in events:
            yield event

    async with client_of(Streams([short])) as client:
        received = await every_event(client, "/streams/short")
    assert [event.json() for event in received[1:-1]] == events


async def test_all_who_wait_for_a_shared_run_to_open_get_its_failure() -> None:
    gate, requests, opened = asyncio.Event(), 0, 0

    @source(shared=True)
    async def refusing() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        await gate.wait()
        raise StreamError("not today", status=409)

    streams = Streams([refusing])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal requests
        requests += 1
        await streams(scope, receive, send)

    async with client_of(app, lifespan="off") as client, asyncio.TaskGroup() as group:
        paths = ["/streams/refusing"] * 3
        responses = [group.create_task(client.get(path, timeout=20)) for path in paths]
        await until(lambda: requests == 3, "three viewers wait")
        gate.set()
    assert [(await response).status_code for response in responses] == [409] * 3
    assert opened == 1
    assert not len(streams.log)


async def test_a_shared_source_that_fails_because_another_run_is_unknown_opens_once() -> None:
    opened = 0

    @source(shared=True)
    async def relay() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        await streams.runs.find("unknown", None)
        raise AssertionError

    streams = Streams([relay])
    async with client_of(streams) as client:
        assert (await client.get("/streams/relay")).status_code == 404
    assert opened == 1


@pytest.mark.parametrize("shared", [True, False])
async def test_a_run_that_the_log_loses_while_it_opens_starts_again_only_if_it_is_shared(
    shared: bool,
) -> None:
    gate, opened = asyncio.Event(), 0

    @source(shared=shared)
    async def slow() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        if opened == 1:
            await gate.wait()
        return three()

    async def three() -> AsyncIterator[int]:
        yield 3

    streams = Streams([slow])
    async with client_of(streams) as client:
        response = asyncio.ensure_future(client.get("/streams/slow"))
        await until(lambda: opened, "the run opens")
        (run,) = streams.runs._producing
        await streams.log.discard(run.log.info.run)
        assert (await response).status_code == (200 if shared else 503)
    assert opened == (2 if shared else 1)


async def test_a_viewer_who_leaves_while_a_shared_run_opens_does_not_cancel_it() -> None:
    gate = asyncio.Event()

    @source(shared=True)
    async def slow() -> AsyncIterator[int]:
        await gate.wait()
        return three()

    async def three() -> AsyncIterator[int]:
        yield 3

    streams = Streams()
    job = await slow.job({}, None, policy=streams.policy)
    first = asyncio.ensure_future(streams.runs.attach(job, None))
    second = asyncio.ensure_future(streams.runs.attach(job, None))
    await until(lambda: len(streams.log), "the run opens")
    first.cancel()
    gate.set()
    position = await asyncio.wait_for(second, 5)
    assert position is not None
    assert position.after == -1


async def test_a_private_run_whose_starter_is_cancelled_while_it_opens_is_discarded() -> None:
    closed = asyncio.Event()

    @source
    async def slow() -> AsyncIterator[int]:
        try:
            await anyio.sleep_forever()
        finally:
            closed.set()
        raise AssertionError

    streams = Streams()
    job = await slow.job({}, None, policy=streams.policy)
    starting = asyncio.ensure_future(streams.runs.start(job))
    await until(lambda: len(streams.log), "the run opens")
    await asyncio.sleep(0)
    starting.cancel()
    await until(closed.is_set, "the opening is cancelled")
    assert not len(streams.log)


async def test_a_server_that_shuts_down_does_not_wait_for_an_opening() -> None:
    @source
    async def slow() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        raise AssertionError

    streams = Streams([slow])
    async with client_of(streams) as client:
        response = asyncio.ensure_future(client.get("/streams/slow", timeout=20))
        await until(lambda: len(streams.log), "the run opens")
        await streams.runs.aclose()
        assert (await response).status_code == 503


async def test_a_shared_run_does_not_see_the_context_of_the_viewer_who_starts_it() -> None:
    seen = []

    @source(shared=True)
    async def contextual() -> AsyncIterator[int]:
        seen.append(request_variable.get(None))
        return generator()

    async def generator() -> AsyncIterator[int]:
        seen.append(request_variable.get(None))
        yield 1

    request_variable.set("of the first viewer")
    streams = Streams()
    await streams.runs.start(await contextual.job({}, None, policy=streams.policy))
    assert seen == [None, None]


def test_a_shared_source_with_a_request_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="cannot depend on the request"):

        @source(shared=True)
        async def wrong(request: Request | None = None) -> AsyncIterator[int]:
            yield 1


async def test_a_shared_runs_key_has_the_same_length_for_all_arguments() -> None:
    @source(shared=True)
    async def repeat(text: str, count: int = 1) -> AsyncIterator[str]:
        yield text * count

    async def key(**arguments: Any) -> str:
        job = await repeat.job(arguments, None, policy=Policy())
        return job.arguments_hash or ""

    assert len(await key(text="a" * 10**6)) == len(await key(text="")) < 100
    assert await key(text="a") == await key(count=1, text="a")
    assert len({await key(text="a"), await key(text="b"), await key(text="a", count=2)}) == 3


@pytest.mark.parametrize(
    ("key", "linger", "was_read", "seconds"),
    [
        (None, 30, False, 5),
        (None, 2, False, 5),
        (None, None, False, None),
        ("key", 30, False, 30),
        ("key", 2, False, 5),
        (None, 30, True, 30),
        (None, 2, True, 2),
    ],
)
def test_a_run_that_nobody_has_read_waits_five_seconds_and_for_linger_only_with_a_key(
    key: str | None, linger: float | None, was_read: bool, seconds: float | None
) -> None:
    async def never() -> AsyncIterator[int]:
        await asyncio.sleep(60)
        yield 1

    async def open_source() -> Any:
        return never()

    async def main() -> None:
        runs = Runs(MemoryLog(), {})
        job = Job(source="s", policy=Policy(linger=linger), open=open_source, key=key)
        log = await runs.start(job)
        if was_read:
            with log.read(-1):
                pass
        await asyncio.sleep(50 if seconds is None else seconds - 0.1)
        assert log.status == "running"
        await asyncio.sleep(0.2)
        assert log.status == ("running" if seconds is None else "cancelled")
        await runs.aclose()

    run_in_virtual_time(main())


def test_a_run_whose_client_left_before_its_response_began_waits_five_seconds() -> None:
    @source
    async def waits() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(60)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None: ...

    async def main() -> None:
        streams = Streams([waits])
        async with streams:
            path = {"path": "/streams/waits", "raw_path": b"/streams/waits", "query_string": b""}
            scope = {"type": "http", "method": "GET", "headers": [], **path}
            await streams(scope, receive, send)
            await asyncio.sleep(4.9)
            assert streams.runs.health()["running"] == 1
            await asyncio.sleep(0.2)
            assert streams.runs.health()["running"] == 0
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # sse-starlette's watcher
            task.cancel()
        await asyncio.sleep(0)

    run_in_virtual_time(main())


async def test_no_context_and_no_arguments_are_kept_until_the_store_has_the_end(
    sqlite_url: str,
) -> None:
    kept: list[weakref.ref[Any]] = []

    @source
    async def movable(text: str = "", *, after: int = 0) -> AsyncIterator[int]:
        yield 1
        await gate.wait()

    async def request() -> RunLog:
        value = Big()
        kept.append(weakref.ref(value))
        request_variable.set(value)
        return await streams.runs.start(await movable.job({}, None, policy=streams.policy))

    gate = asyncio.Event()
    store = shared_log(sqlite_url)
    streams = Streams([movable], log=store)
    async with streams:
        with gc_disabled():
            log = await asyncio.create_task(request())
            assert log.info.arguments == "{}"
            await store.written()
            await kill(store)
            gate.set()
            await until(lambda: not streams.runs.health()["running"], "the run's task has ended")
            await asyncio.sleep(0)
            assert log.ended_here is None, "the end is not certain"
            (production,) = streams.runs._producing._uncertain.values()
            assert production is not None
            assert production.info.arguments is None
            assert [ref() for ref in kept] == [None]
