"""runs.py: how runs start, resume, restart, and end."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from httpx_sse import ServerSentEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from streams import Source, StreamError, Streams, source
from streams.errors import InvalidEventId, RunGone
from streams.event import EventId
from streams.job import Job
from streams.sources import clock, counter
from tests.support.list_log import ListLog
from tests.support.servers import Connection, client_of, connection, every_event, serving, until
from tests.support.sources import gated

UNKNOWN = "AAAAAAAAAAAAAAAAAAAAAA"


@source(name="counter")
async def mortal(count: int = 10) -> AsyncIterator[dict[str, int]]:
    """A counter that is not restartable."""
    for number in range(count):
        yield {"number": number}
        await anyio.lowlevel.checkpoint()


async def read_until_cut(client: httpx.AsyncClient, url: str, last: str | None, cut: int) -> bytes:
    """The first `cut` bytes of a stream's body, or all of it, after which the client closes."""
    headers = {"Last-Event-ID": last} if last else {}
    body = b""
    with anyio.fail_after(20):
        async with client.stream("GET", url, headers=headers) as response:
            if response.status_code == 204:
                return b""
            async for data in response.aiter_raw():
                body += data
                if len(body) > cut:
                    break
    return body[:cut]


def complete_events(body: bytes) -> list[tuple[str, str]]:
    """The id and the data of each complete event, which ends with a blank line."""
    events = []
    for block in body.split(b"\n\n")[:-1]:
        lines = [line.split(b": ", 1) for line in block.splitlines() if b": " in line]
        fields = {name.decode(): value.decode() for name, value in lines}
        events.append((fields["id"], fields["data"]))
    return events


def has_event_1(stream: Connection) -> bool:
    return stream.body.endswith(b"data: 1\n\n")


def ids(events: list[ServerSentEvent]) -> list[str]:
    return [event.id for event in events]


@pytest.mark.timeout(180)  # It starts 25 servers.
@pytest.mark.parametrize("log", [None, ListLog()], ids=["memory", "list"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 900), max_size=8))
async def test_every_event_arrives_once_and_in_order_wherever_the_stream_is_cut(
    log: Any, cuts: list[int]
) -> None:
    async with client_of(Streams([mortal], log=log)) as client:
        last: str | None = None
        seen: list[str] = []
        run = None
        url = "/streams/counter?count=20"
        for cut in [*cuts, 10**6]:
            for event_id, data in complete_events(await read_until_cut(client, url, last, cut)):
                last = event_id
                seen.append(data)
            if last is None:  # Without an id the next request starts another run.
                continue
            run = run or last.partition(".")[0]
            assert last.startswith(run)
        numbers = [f'{{"number":{n}}}' for n in range(20)]
        assert seen == [
            f'{{"run":"{run}","source":"counter","url":"/runs/{run}"}}',
            *numbers,
            '{"status":"completed"}',
        ]
        again = await client.get(url, headers={"Last-Event-ID": str(last)})
        assert (again.status_code, again.content) == (204, b"")
        beyond = await client.get(url, headers={"Last-Event-ID": f"{run}.22"})
        assert beyond.status_code == 410
        assert "has no event 22" in beyond.text


async def test_a_client_that_is_cut_off_before_the_first_token_resumes_the_same_run() -> None:
    gate, runs = asyncio.Event(), 0

    @source
    async def costly() -> AsyncIterator[str]:
        nonlocal runs
        runs += 1
        await gate.wait()
        yield "token"

    async with serving(Streams([costly])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/costly") as stream:
            await stream.until(
                lambda stream: stream.body.endswith(b"\n\n"), "the start event has arrived"
            )
            run = stream.run
        gate.set()
        events = await every_event(client, "/streams/costly", f"{run}.0")
    assert [event.data for event in events] == ['"token"', '{"status":"completed"}']
    assert runs == 1


async def test_each_reader_of_a_run_begins_after_its_own_last_event_id() -> None:
    async with client_of(Streams([counter])) as client:
        events = await every_event(client, "/streams/counter?count=5&interval=0")
        run = events[0].json()["run"]
        for number in range(-1, 6):
            last = None if number < 0 else f"{run}.{number}"
            again = await every_event(client, f"/runs/{run}", last)
            assert ids(again) == ids(events[number + 1 :])
        for url in (f"/runs/{run}?last_event_id=", "/streams/counter?lastEventId="):
            assert ids(await every_event(client, f"{url}{run}.3")) == ids(events[4:])
        end = await client.get(f"/runs/{run}", headers={"Last-Event-ID": f"{run}.6"})
        assert end.status_code == 204


@pytest.mark.parametrize("served", [counter, mortal], ids=["restartable", "not restartable"])
async def test_a_client_cannot_start_a_run_under_an_id_of_its_choosing(
    served: Source[..., Any],
) -> None:
    streams = Streams([served])
    async with client_of(streams) as client:
        response = await client.get("/streams/counter", headers={"Last-Event-ID": f"{UNKNOWN}.2"})
        assert response.status_code == 410
        assert UNKNOWN in response.json()["detail"]
    assert not len(streams.log)


@pytest.mark.parametrize("shared", [False, True])
async def test_a_run_is_resumed_only_with_its_own_parameters(shared: bool) -> None:
    @source(shared=shared)
    async def numbers(count: int = 3, first: int = 0) -> AsyncIterator[int]:
        for number in range(first, first + count):
            yield number

    async with client_of(Streams([numbers])) as client:
        for given in ("", "?count=3", "?count=5"):
            run = (await every_event(client, f"/streams/numbers{given}"))[0].json()["run"]
            for again in ("", "?count=3", "?count=3&first=0", "?count=5", "?first=1"):
                response = await client.get(
                    f"/streams/numbers{again}", headers={"Last-Event-ID": f"{run}.1"}
                )
                same = again in ("", given) or (given != "?count=5" and "count=3" in again)
                assert response.status_code == (200 if same else 422)
                if not same:
                    assert "other parameters" in response.json()["detail"]


@pytest.mark.parametrize("shared", [False, True])
async def test_a_client_that_resumes_may_leave_out_required_parameters(shared: bool) -> None:
    @source(shared=shared)
    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async with client_of(Streams([numbers])) as client:
        run = (await every_event(client, "/streams/numbers?count=3"))[0].json()["run"]
        headers = {"Last-Event-ID": f"{run}.2"}
        for method in ("GET", "POST"):
            resumed = await client.request(method, "/streams/numbers", headers=headers)
            assert re.findall("id: .*", resumed.text) == [f"id: {run}.3", f"id: {run}.4"]
        lost = await client.get("/streams/numbers", headers={"Last-Event-ID": f"{UNKNOWN}.2"})
        if shared:
            assert (lost.status_code, "count: is required" in lost.text) == (422, True)
        else:
            assert (lost.status_code, UNKNOWN in lost.text) == (410, True)
        new = await client.get("/streams/numbers")
        assert (new.status_code, "count: is required" in new.text) == (422, True)


async def test_a_client_of_a_lost_shared_run_gets_a_gap_and_the_running_one() -> None:
    async with (
        serving(Streams([clock])) as url,
        connection(
            url, "/streams/clock?interval=0.01", headers=f"Last-Event-ID: {UNKNOWN}.2\r\n"
        ) as stream,
    ):
        await stream.until(
            lambda stream: stream.body.count(b"\ndata: ") > 4, "5 events have arrived"
        )
        _, _, rest = stream.body.partition(b"\n")
        assert rest.startswith(
            b'event: gap\ndata: {"missed":null}\n\nid: %b.0\nevent: start\n' % stream.run.encode()
        )


async def test_a_retained_shared_run_resumes_after_the_last_event_id() -> None:
    async with (
        serving(Streams([clock])) as url,
        connection(url, "/streams/clock?interval=0.01") as stream,
    ):
        await stream.until(lambda stream: b".9\n" in stream.body, "event 9 has arrived")
        async with connection(
            url, "/streams/clock?interval=0.01", headers=f"Last-Event-ID: {stream.run}.3\r\n"
        ) as again:
            await again.until(lambda stream: b"\ndata: " in stream.body, "an event has arrived")
            assert again.body.partition(b"\n")[2].startswith(b"id: %b.4\n" % stream.run.encode())


async def test_viewers_share_a_run_if_their_parameters_are_equal_with_defaults_filled_in() -> None:
    streams = Streams([clock])
    async with serving(streams) as url:
        paths = ["/streams/clock", "/streams/clock?interval=1", "/streams/clock?interval=2"]
        runs = []
        for path in paths * 2:
            async with connection(url, path) as stream:
                await stream.until(lambda stream: stream.body, "the body has begun")
                runs.append(stream.run)
    assert runs[0] == runs[1] == runs[3]
    assert runs[2] == runs[5] != runs[0]


async def test_100_viewers_of_a_shared_source_that_is_still_opening_start_one_run() -> None:
    gate, opened = asyncio.Event(), 0

    @source(shared=True)
    async def slow() -> AsyncIterator[dict[str, Any]]:
        nonlocal opened
        opened += 1
        await gate.wait()
        return clock()

    streams, requests = Streams([slow]), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal requests
        requests += 1
        await streams(scope, receive, send)

    async with serving(app, lifespan="off") as url, anyio.create_task_group() as group:
        runs = []

        async def view() -> None:
            async with connection(url, "/streams/slow") as stream:
                await stream.until(
                    lambda stream: b"event: start" in stream.body, "the start event has arrived", 20
                )
                runs.append(stream.run)

        for _ in range(100):
            group.start_soon(view)
        await until(lambda: requests == 100, "100 viewers wait for the source", 20)
        gate.set()
        await until(lambda: len(runs) == 100, "all viewers have the start event", 20)
    assert opened == 1
    assert len(set(runs)) == 1


async def test_the_next_viewer_after_a_shared_run_has_ended_starts_another() -> None:
    @source(shared=True)
    async def once() -> AsyncIterator[int]:
        yield 1

    async with client_of(Streams([once])) as client:
        first, second = [await every_event(client, "/streams/once") for _ in range(2)]
    assert first[0].json()["run"] != second[0].json()["run"]
    assert first[-1].json() == second[-1].json() == {"status": "completed"}


async def test_delete_from_another_connection_ends_the_stream_of_every_viewer() -> None:
    closed = asyncio.Event()

    @source
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.set()

    async with serving(Streams([endless])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/endless") as one:
            await one.until(has_event_1, "event 1 has arrived")
            async with connection(url, f"/runs/{one.run}") as other:
                await other.until(has_event_1, "event 1 has arrived")
                for _ in range(2):
                    response = await client.delete(f"/runs/{one.run}")
                    assert (response.status_code, response.content) == (204, b"")
                for stream in (one, other):
                    await stream.until(lambda stream: stream.terminated, "the stream has ended")
                    assert stream.body.endswith(
                        b'.2\nevent: end\ndata: {"status":"cancelled","reason":"stopped"}\n\n'
                    )
            await until(closed.is_set, "the source is closed")
        events = await every_event(client, f"/runs/{one.run}")
    assert events[1].data == "1", "a cancelled run stays readable"


async def test_a_client_that_reconnects_within_linger_resumes_its_run() -> None:
    started = 0

    @source(linger=3600)
    async def endless() -> AsyncIterator[int]:
        nonlocal started
        started += 1
        while True:
            yield 1
            await anyio.sleep(0.01)

    async with serving(Streams([endless])) as url:
        headers = ""
        for number in range(3):
            async with connection(url, "/streams/endless", headers=headers) as stream:
                await stream.until(
                    lambda stream: b"\ndata: 1\n\n" in stream.body, "an event has arrived"
                )
                headers = f"Last-Event-ID: {stream.run}.{number}\r\n"
    assert started == 1


async def test_a_run_is_cancelled_after_linger_seconds_without_a_reader() -> None:
    """Its finally runs. A reader that attaches before that stops the countdown."""
    closed = asyncio.Event()

    @source(linger=0.1)
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await anyio.sleep(0.01)
        finally:
            closed.set()

    streams = Streams([endless])
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/endless") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            log = await streams.log.find(stream.run)
            with log.read(-1):
                stream.abort()
                await until(lambda: log.readers == 1, "the client is detached")
            with log.read(-1):
                await anyio.sleep(0.3)  # This is longer than linger.
                assert log.producing, "the second reader attached before linger had passed"
        await until(closed.is_set, "the source is closed")
        events = await every_event(client, f"/runs/{stream.run}")
    assert events[-1].json() == {"status": "cancelled", "reason": "no reader"}


async def test_a_run_with_linger_none_completes_without_a_reader() -> None:
    gate = asyncio.Event()

    @source(linger=None)
    async def job() -> AsyncIterator[int]:
        await gate.wait()
        for step in range(50):
            yield step

    streams = Streams([job], linger=0)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/job") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            log = await streams.log.find(stream.run)
        await until(lambda: not streams.log.readers, "the reader is detached")
        gate.set()
        await until(lambda: log.status == "completed", "the run is completed")
        events = await every_event(client, f"/runs/{stream.run}")
    assert len(events) == 52
    assert events[-1].json() == {"status": "completed"}


async def test_an_exception_in_a_source_ends_the_run_after_the_events_it_yielded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @source
    async def breaks() -> AsyncIterator[int]:
        yield 1
        await anyio.lowlevel.checkpoint()
        raise ValueError("the password is secret")

    async with client_of(Streams([breaks])) as client:
        events = await every_event(client, "/streams/breaks")
    assert [event.event for event in events] == ["start", "message", "end"]
    end = events[-1].json()
    assert end["status"] == "failed"
    assert end["error"]["type"] == "ValueError"
    assert "secret" not in events[-1].data
    run = events[0].json()["run"]
    assert f"run {run} of source breaks failed" in caplog.text
    assert "ValueError: the password is secret" in caplog.text


async def test_the_message_of_a_stream_error_is_sent_to_the_client() -> None:
    @source
    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise StreamError("out of \ud800 paper")

    async with client_of(Streams([breaks])) as client:
        events = await every_event(client, "/streams/breaks")
    assert events[-1].json()["error"] == {"type": "StreamError", "message": "out of ? paper"}


class Unknown:
    """A type that JSON cannot represent."""


@pytest.mark.parametrize("value", [Unknown(), "\ud800"])
async def test_an_unencodable_value_fails_the_run_with_an_error_that_names_its_type(
    value: Any,
) -> None:
    closed = []

    @source
    async def odd() -> AsyncIterator[Any]:
        try:
            yield {1}
            yield float("nan")
            yield value
        finally:
            closed.append(True)

    async with client_of(Streams([odd])) as client:
        events = await every_event(client, "/streams/odd")
    assert [event.data for event in events[1:3]] == ["[1]", "null"]
    error = events[-1].json()["error"]
    assert error["type"] == "UnencodableValue"
    assert type(value).__name__ in error["message"]
    assert closed


async def test_an_exception_before_the_first_event_becomes_the_status_of_the_response() -> None:
    @source
    async def refuses(status: int = 0) -> AsyncIterator[int]:
        if status:
            raise StreamError("not today", status=status, retry_after=7, hint="tomorrow")
        raise ValueError("the password is secret")

    @source
    async def at_once(status: int = 0) -> AsyncIterator[int]:
        await refuses(status)
        yield 1

    streams = Streams([refuses, at_once])
    async with client_of(streams) as client:
        for name in ("refuses", "at_once"):
            response = await client.get(f"/streams/{name}?status=402")
            assert response.status_code == 402
            assert response.headers["retry-after"] == "7"
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json() == {
                "type": "about:blank",
                "title": "Payment Required",
                "status": 402,
                "detail": "not today",
                "hint": "tomorrow",
            }
            response = await client.get(f"/streams/{name}")
            assert response.status_code == 500
            assert "ValueError" in response.json()["detail"]
            assert "secret" not in response.text
    await until(lambda: not len(streams.log), "the failed runs are forgotten")


async def test_a_source_that_never_waits_does_not_block_other_requests() -> None:
    @source
    async def endless() -> AsyncIterator[int]:
        while True:
            yield 1

    streams = Streams([endless, counter], window=10**9)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/endless") as stream:
            await stream.until(lambda stream: stream.body, "the body has begun")
            before = streams.log.events
            for _ in range(10):
                assert (await client.get("/health")).status_code == 200
            assert streams.log.events > before, "the source continued meanwhile"
            events = await every_event(client, "/streams/counter?interval=0")
            assert len(events) == 12


async def test_a_cpu_bound_source_yields_to_the_event_loop_every_few_milliseconds() -> None:
    turns: list[int] = []

    @source
    async def heavy() -> AsyncIterator[int]:
        loop = asyncio.get_running_loop()
        for number in range(20):
            loop.call_soon(turns.append, number)
            busy_until = time.monotonic() + 0.004
            while time.monotonic() < busy_until:
                pass
            yield number
            assert len(turns) >= number - 2, "two events take more than BURST_SECONDS"

    async with client_of(Streams([heavy])) as client:
        assert len(await every_event(client, "/streams/heavy")) == 22


async def test_a_sync_generator_can_be_a_source() -> None:
    @source
    def numbers() -> Iterator[int]:
        yield from range(3)

    async with client_of(Streams([numbers])) as client:
        events = await every_event(client, "/streams/numbers")
    assert [event.data for event in events[1:-1]] == ["0", "1", "2"]


async def test_a_source_that_ignores_its_cancellation_is_closed() -> None:
    closed = asyncio.Event()

    @source
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
            while True:
                try:
                    await anyio.sleep_forever()
                except asyncio.CancelledError:
                    yield 2
        finally:
            closed.set()

    async with serving(Streams([stubborn])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/stubborn") as stream:
            await stream.until(has_event_1, "event 1 has arrived")
            await client.delete(f"/runs/{stream.run}")
            await stream.until(lambda stream: stream.terminated, "the stream has ended")
        await until(closed.is_set, "the source is closed")
    assert stream.body.endswith(b'"cancelled","reason":"stopped"}\n\n')


async def test_a_finally_that_takes_too_long_is_interrupted_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.run.CLEANUP_SECONDS", 0.05)
    interrupted = asyncio.Event()

    @source
    async def slow_to_close() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            try:
                await anyio.sleep_forever()
            finally:
                interrupted.set()

    async with serving(Streams([slow_to_close])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/slow_to_close") as stream:
            await stream.until(has_event_1, "event 1 has arrived")
            await client.delete(f"/runs/{stream.run}")
            await until(interrupted.is_set, "the finally is interrupted")
    assert "did not stop within 0.05 s" in caplog.text


async def test_an_exception_in_aclose_is_logged_and_the_run_completes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Events:
        def __aiter__(self) -> "Events":
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            raise ValueError("cannot close")

    @source
    async def odd() -> Events:
        return Events()

    async with client_of(Streams([odd])) as client:
        events = await every_event(client, "/streams/odd")
    assert events[-1].json() == {"status": "completed"}
    assert "closing its source failed" in caplog.text


async def test_an_iterator_without_aclose_can_be_streamed() -> None:
    class Events:
        def __aiter__(self) -> "Events":
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

    @source
    async def plain() -> Events:
        return Events()

    async with client_of(Streams([plain])) as client:
        assert len(await every_event(client, "/streams/plain")) == 2


async def test_with_lifespan_sources_are_closed_before_the_server_ends() -> None:
    closed = []

    @source(linger=None)
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(0.01)  # A finally that waits is given time.
            closed.append(True)

    streams = Streams([endless])
    async with (
        serving(streams, lifespan="on") as url,
        connection(url, "/streams/endless") as stream,
    ):
        await stream.until(has_event_1, "event 1 has arrived")
    assert closed
    assert (await streams.log.find(stream.run)).status == "cancelled"


def test_without_lifespan_sources_are_closed_before_the_event_loop_ends() -> None:
    closed = []

    @source(linger=None)
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.append(True)

    async def main() -> None:
        async with (
            serving(streams, lifespan="off") as url,
            connection(url, "/streams/endless") as stream,
        ):
            await stream.until(has_event_1, "event 1 has arrived")

    streams = Streams([endless])
    asyncio.run(main())
    assert closed
    assert asyncio.run(only_run(streams)) == "cancelled"


async def only_run(streams: Streams) -> str:
    """The status of the only run in the log."""
    (log,) = streams.log.runs  # type: ignore[attr-defined]
    return str(log.status)


async def test_a_finished_run_is_forgotten_after_retain() -> None:
    streams = Streams([counter], retain=0.05)
    async with client_of(streams) as client:
        run = (await every_event(client, "/streams/counter?count=1"))[0].json()["run"]
        await until(lambda: not len(streams.log), "the run is forgotten")
        assert (await client.get(f"/runs/{run}")).status_code == 404


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{22}\.[0-9]{1,20}", fullmatch=True))
def test_an_event_id_is_parsed_and_formatted_unchanged_or_refused(text: str) -> None:
    with suppress(InvalidEventId):
        assert "{}.{}".format(*EventId.parse(text)) == text


async def test_a_stream_works_with_a_custom_event_log() -> None:
    async with client_of(Streams([counter], log=ListLog())) as client:
        events = await every_event(client, "/streams/counter?count=50&interval=0")
        run = events[0].json()["run"]
        again = await every_event(client, "/streams/counter", f"{run}.{random.randint(1, 40)}")
        assert ids(events[-len(again) :]) == ids(again)
        assert (await client.delete(f"/runs/{run}")).status_code == 204


async def test_a_client_resumes_a_run_while_its_source_waits() -> None:
    gate = asyncio.Event()
    async with serving(Streams([gated(gate)])) as url:
        async with connection(url, "/streams/gated") as stream:
            await stream.until(has_event_1, "event 1 has arrived")
        async with connection(
            url, "/streams/gated", headers=f"Last-Event-ID: {stream.run}.1\r\n"
        ) as again:
            await again.until(lambda stream: stream.body, "the body has begun")
            assert again.body.startswith(b"retry: "), "it begins before there is an event to send"
            gate.set()
            await again.until(lambda stream: stream.terminated, "the stream has ended")
    assert [data for _, data in complete_events(again.body)] == ["2", '{"status":"completed"}']


async def test_a_run_that_is_stopped_while_its_source_opens_closes_the_opened_iterator() -> None:
    closed = anyio.Event()

    class Opened:
        def __aiter__(self) -> "Opened":
            return self

        async def __anext__(self) -> int:
            raise AssertionError("a stopped run reads no events")

        async def aclose(self) -> None:
            closed.set()

    async def opener() -> AsyncIterator[int]:
        [log] = list(streams.log.runs.values())
        await streams.runs.cancel(log)
        return Opened()

    streams: Any = Streams(log=ListLog())
    job = Job(source="opened", policy=streams.policy, open=opener)
    with pytest.raises(RunGone, match="stopped before it started"):
        await streams.runs.start(job)
    await until(closed.is_set, "the opened iterator is closed")
