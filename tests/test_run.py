"""run.py: how a run lives, is resumed, restarted and ended."""

import asyncio
import logging
import random
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

from streams import StreamError, Streams, source
from streams.errors import InvalidEventId, RunGone
from streams.event import EventId
from streams.sources import clock, counter
from tests.support.list_log import ListLog
from tests.support.servers import client_of, connection, every_event, serving, until
from tests.test_response import gated

UNKNOWN = "AAAAAAAAAAAAAAAAAAAAAA"


@source(name="counter")
async def mortal(count: int = 10) -> AsyncIterator[dict[str, int]]:
    """A counter that is not restartable."""
    for number in range(count):
        yield {"number": number}
        await anyio.lowlevel.checkpoint()


async def read_until_cut(client: httpx.AsyncClient, url: str, last: str | None, cut: int) -> bytes:
    """What came before the connection was cut, at least `cut` bytes of the body or its end."""
    headers = {"Last-Event-ID": last} if last else {}
    body = b""
    async with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 204:
            return b""
        async for data in response.aiter_raw():
            body += data
            if len(body) > cut:
                break
    return body[:cut]


def complete_events(body: bytes) -> list[tuple[str, str]]:
    """Id and data of every block that has its blank line, as a client that knows the rules."""
    events = []
    for block in body.split(b"\n\n")[:-1]:
        lines = [line.split(b": ", 1) for line in block.splitlines() if b": " in line]
        fields = {name.decode(): value.decode() for name, value in lines}
        events.append((fields["id"], fields["data"]))
    return events


def ids(events: list[ServerSentEvent]) -> list[str]:
    return [event.id for event in events]


@pytest.mark.parametrize("log", [None, ListLog()])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 900), max_size=8))
async def test_wherever_it_is_cut_every_event_comes_once_and_in_order(
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
            if last is None:  # the first event did not arrive: nothing to go on from
                continue
            run = run or last.partition(".")[0]
            assert last.startswith(run)
        numbers = [f'{{"number":{n}}}' for n in range(20)]
        assert seen == [
            f'{{"run":"{run}","source":"counter"}}',
            *numbers,
            '{"status":"completed"}',
        ]
        again = await client.get(url, headers={"Last-Event-ID": str(last)})
        assert (again.status_code, again.content) == (204, b"")


async def test_a_cut_before_the_first_token_goes_on_with_the_same_run() -> None:
    gate, runs = asyncio.Event(), 0

    @source
    async def costly() -> AsyncIterator[str]:
        nonlocal runs
        runs += 1
        await gate.wait()
        yield "token"

    async with serving(Streams([costly])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/costly") as stream:
            await stream.until(lambda stream: stream.body.endswith(b"\n\n"))
            run = stream.run
        gate.set()
        events = await every_event(client, "/streams/costly", f"{run}.0")
    assert [event.data for event in events] == ['"token"', '{"status":"completed"}']
    assert runs == 1


async def test_any_number_of_readers_attach_to_a_run_each_from_its_own_place() -> None:
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


async def test_a_run_that_is_gone_goes_on_under_its_id_if_its_source_is_restartable() -> None:
    streams = Streams([counter])
    async with client_of(streams) as client:
        url = "/streams/counter?count=5&interval=0"
        events = await every_event(client, url, f"{UNKNOWN}.2")
        assert [event.data for event in events] == [
            '{"number":2}', '{"number":3}', '{"number":4}', '{"status":"completed"}',
        ]  # fmt: skip
        assert [event.id for event in events] == [f"{UNKNOWN}.{n}" for n in (3, 4, 5, 6)]
        again = await client.get(url, headers={"Last-Event-ID": f"{UNKNOWN}.6"})
        assert again.status_code == 204
        assert streams.runs.restarts == 1


@pytest.mark.parametrize("number", [5, 6, 7, 10**15])
async def test_where_nothing_is_left_to_send_a_restart_is_204(number: int) -> None:
    streams = Streams([counter])
    async with client_of(streams) as client:
        url = "/streams/counter?count=5&interval=0"
        response = await client.get(url, headers={"Last-Event-ID": f"{UNKNOWN}.{number}"})
        assert response.status_code == 204
        assert len(streams.log) == 0


async def test_a_second_viewer_of_a_restarted_run_may_be_ahead_of_it() -> None:
    async with serving(Streams([counter])) as url:
        path = "/streams/counter?count=6&interval=0.05"
        async with (
            connection(url, path, headers=f"Last-Event-ID: {UNKNOWN}.1\r\n") as behind,
            connection(url, path, headers=f"Last-Event-ID: {UNKNOWN}.4\r\n") as ahead,
        ):
            await ahead.until(lambda stream: stream.terminated)
            await behind.until(lambda stream: stream.terminated)
        assert ahead.body.count(b'"number":') == 2
        assert behind.body.count(b'"number":') == 5


async def test_a_run_that_is_gone_and_not_restartable_is_410() -> None:
    async with client_of(Streams([mortal])) as client:
        response = await client.get("/streams/counter", headers={"Last-Event-ID": f"{UNKNOWN}.2"})
        assert response.status_code == 410
        assert UNKNOWN in response.json()["detail"]


async def test_a_shared_run_that_is_gone_is_the_live_one_after_a_gap() -> None:
    async with (
        serving(Streams([clock])) as url,
        connection(
            url, "/streams/clock?interval=0.01", headers=f"Last-Event-ID: {UNKNOWN}.2\r\n"
        ) as stream,
    ):
        await stream.until(lambda stream: stream.body.count(b"\ndata: ") > 4)
        _, _, rest = stream.body.partition(b"\n")
        assert rest.startswith(
            b'event: gap\ndata: {"missed":null}\n\nid: %b.0\nevent: start\n' % stream.run.encode()
        )


async def test_a_shared_run_is_resumed_like_any_other_while_it_is_there() -> None:
    async with (
        serving(Streams([clock])) as url,
        connection(url, "/streams/clock?interval=0.01") as stream,
    ):
        await stream.until(lambda stream: b".9\n" in stream.body)
        async with connection(
            url, "/streams/clock?interval=0.01", headers=f"Last-Event-ID: {stream.run}.3\r\n"
        ) as again:
            await again.until(lambda stream: b"\ndata: " in stream.body)
            assert again.body.partition(b"\n")[2].startswith(b"id: %b.4\n" % stream.run.encode())


async def test_viewers_with_other_parameters_share_another_run_and_defaults_count() -> None:
    streams = Streams([clock])
    async with serving(streams) as url:
        paths = ["/streams/clock", "/streams/clock?interval=1", "/streams/clock?interval=2"]
        runs = []
        for path in paths * 2:
            async with connection(url, path) as stream:
                await stream.until(lambda stream: stream.body)
                runs.append(stream.run)
    assert runs[0] == runs[1] == runs[3]
    assert runs[2] == runs[5] != runs[0]


async def test_100_first_viewers_of_a_shared_source_start_one_run() -> None:
    opened = 0

    @source(shared=True)
    async def slow() -> AsyncIterator[int]:
        nonlocal opened
        opened += 1
        await anyio.sleep(0.05)
        return clock()  # type: ignore[no-any-return]

    streams = Streams([slow])
    async with serving(streams) as url, anyio.create_task_group() as group:
        runs = []

        async def view() -> None:
            async with connection(url, "/streams/slow") as stream:
                await stream.until(lambda stream: stream.body)
                runs.append(stream.run)

        for _ in range(100):
            group.start_soon(view)
        await until(lambda: len(runs) == 100)
    assert opened == 1
    assert len(set(runs)) == 1


async def test_after_a_shared_run_has_ended_the_next_viewer_starts_another() -> None:
    @source(shared=True)
    async def once() -> AsyncIterator[int]:
        yield 1

    async with client_of(Streams([once])) as client:
        first, second = [await every_event(client, "/streams/once") for _ in range(2)]
    assert first[0].json()["run"] != second[0].json()["run"]
    assert first[-1].json() == second[-1].json() == {"status": "completed"}


async def test_stop_from_another_connection_ends_the_stream_for_every_viewer() -> None:
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
            await one.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
            async with connection(url, f"/runs/{one.run}") as other:
                await other.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
                for _ in range(2):
                    response = await client.delete(f"/runs/{one.run}")
                    assert (response.status_code, response.content) == (204, b"")
                for stream in (one, other):
                    await stream.until(lambda stream: stream.terminated)
                    assert stream.body.endswith(
                        b'.2\nevent: end\ndata: {"status":"cancelled","reason":"stopped"}\n\n'
                    )
            await asyncio.wait_for(closed.wait(), 1)
        assert (await every_event(client, f"/runs/{one.run}"))[1].data == "1", "it stays readable"


async def test_with_nobody_reading_a_run_lives_for_linger_and_its_finally_runs() -> None:
    closed = asyncio.Event()

    @source(linger=0.1)
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await anyio.sleep(0.01)
        finally:
            closed.set()

    async with serving(Streams([endless])) as url, httpx.AsyncClient(base_url=url) as client:
        headers = ""
        for number in range(3):  # who comes back in time finds it
            async with connection(url, "/streams/endless", headers=headers) as stream:
                await stream.until(lambda stream: b"\ndata: 1\n\n" in stream.body)
                assert not closed.is_set()
                headers = f"Last-Event-ID: {stream.run}.{number}\r\n"
        await asyncio.wait_for(closed.wait(), 2)
        events = await every_event(client, f"/runs/{stream.run}")
    assert events[-1].json() == {"status": "cancelled", "reason": "no reader"}


async def test_a_run_without_linger_goes_to_its_end_with_nobody_reading() -> None:
    @source(linger=None)
    async def job() -> AsyncIterator[int]:
        for step in range(50):
            await anyio.sleep(0.002)
            yield step

    async with serving(Streams([job])) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/job") as stream:
            await stream.until(lambda stream: stream.body)
        events = await every_event(client, f"/runs/{stream.run}")
    assert len(events) == 52
    assert events[-1].json() == {"status": "completed"}


async def test_what_a_source_raises_later_ends_the_run_after_all_it_had_yielded(
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


async def test_what_a_source_raises_on_purpose_is_told_to_the_client() -> None:
    @source
    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise StreamError("out of \ud800 paper")

    async with client_of(Streams([breaks])) as client:
        events = await every_event(client, "/streams/breaks")
    assert events[-1].json()["error"] == {"type": "StreamError", "message": "out of ? paper"}


class Unknown:
    """Something that JSON cannot hold."""


@pytest.mark.parametrize("value", [Unknown(), "\ud800"])
async def test_what_json_cannot_hold_fails_the_run_naming_the_type(value: Any) -> None:
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


async def test_what_a_source_raises_before_the_response_is_a_status() -> None:
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
    await until(lambda: not len(streams.log))


async def test_a_source_that_never_waits_lets_others_be_answered() -> None:
    @source
    async def endless() -> AsyncIterator[int]:
        while True:
            yield 1

    streams = Streams([endless, counter], window=10**9)
    async with serving(streams) as url, httpx.AsyncClient(base_url=url) as client:
        async with connection(url, "/streams/endless") as stream:
            await stream.until(lambda stream: stream.body)
            before = streams.log.events
            for _ in range(10):
                assert (await client.get("/health")).status_code == 200
            assert streams.log.events > before, "and it went on meanwhile"
            events = await every_event(client, "/streams/counter?interval=0")
            assert len(events) == 12


async def test_a_slow_source_gives_way_after_some_milliseconds() -> None:
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
            assert len(turns) >= number - 2, "two events are eight milliseconds"

    async with client_of(Streams([heavy])) as client:
        assert len(await every_event(client, "/streams/heavy")) == 22


async def test_a_generator_function_streams_from_a_thread() -> None:
    @source
    def numbers() -> Iterator[int]:
        yield from range(3)

    async with client_of(Streams([numbers])) as client:
        events = await every_event(client, "/streams/numbers")
    assert [event.data for event in events[1:-1]] == ["0", "1", "2"]


async def test_a_source_that_ignores_its_cancellation_is_closed_all_the_same() -> None:
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
            await stream.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
            await client.delete(f"/runs/{stream.run}")
            await stream.until(lambda stream: stream.terminated)
        await asyncio.wait_for(closed.wait(), 5)
    assert stream.body.endswith(b'"cancelled","reason":"stopped"}\n\n')


async def test_a_finally_that_takes_too_long_is_interrupted_and_told(
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
            await stream.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
            await client.delete(f"/runs/{stream.run}")
            await asyncio.wait_for(interrupted.wait(), 5)
    assert "did not stop within 0.05 s" in caplog.text


async def test_a_finally_that_fails_is_logged_and_harms_nobody(
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


async def test_an_iterator_needs_no_aclose() -> None:
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


async def test_with_lifespan_the_runs_are_closed_before_the_server_ends() -> None:
    closed = []

    @source(linger=None)
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(0.01)
            closed.append(True)

    streams = Streams([endless])
    async with (
        serving(streams, lifespan="on") as url,
        connection(url, "/streams/endless") as stream,
    ):
        await stream.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
    assert closed
    assert (await streams.log.find(stream.run)).status == "cancelled"


def test_without_lifespan_the_end_of_the_loop_closes_them() -> None:
    closed = []

    @source(linger=None)
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed.append(True)

    async def main() -> None:
        async with serving(streams) as url, connection(url, "/streams/endless") as stream:
            await stream.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))

    streams = Streams([endless])
    asyncio.run(main())
    assert closed
    assert asyncio.run(only_run(streams)) == "cancelled"


async def only_run(streams: Streams) -> str:
    (log,) = streams.log._runs.values()  # type: ignore[attr-defined]
    return str(log.status)


async def test_a_finished_run_is_forgotten_after_retain() -> None:
    streams = Streams([counter], retain=0.05)
    async with client_of(streams) as client:
        run = (await every_event(client, "/streams/counter?count=1"))[0].json()["run"]
        await until(lambda: not len(streams.log))
        assert (await client.get(f"/runs/{run}")).status_code == 404


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{22}\.[0-9]{1,20}", fullmatch=True))
def test_an_event_id_is_parsed_or_refused(text: str) -> None:
    with suppress(InvalidEventId):
        assert "{}.{}".format(*EventId.parse(text)) == text


async def test_the_same_stream_runs_on_a_log_of_somebody_elses() -> None:
    async with client_of(Streams([counter], log=ListLog())) as client:
        events = await every_event(client, "/streams/counter?count=50&interval=0")
        run = events[0].json()["run"]
        again = await every_event(client, "/streams/counter", f"{run}.{random.randint(1, 40)}")
        assert ids(events[-len(again) :]) == ids(again)
        assert (await client.delete(f"/runs/{run}")).status_code == 204


async def test_a_failing_restart_is_told_as_a_status(caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def fragile(*, after: int = 0) -> AsyncIterator[int]:
        if after:
            raise StreamError("no way back", status=409)
        yield 1

    caplog.set_level(logging.CRITICAL)
    async with client_of(Streams([fragile])) as client:
        response = await client.get("/streams/fragile", headers={"Last-Event-ID": f"{UNKNOWN}.1"})
        assert response.status_code == 409


async def test_a_gated_stream_can_be_resumed_while_it_waits() -> None:
    gate = asyncio.Event()
    async with serving(Streams([gated(gate)])) as url:
        async with connection(url, "/streams/gated") as stream:
            await stream.until(lambda stream: stream.body.endswith(b"data: 1\n\n"))
        async with connection(
            url, "/streams/gated", headers=f"Last-Event-ID: {stream.run}.1\r\n"
        ) as again:
            await again.until(lambda stream: stream.body)
            assert again.body.startswith(b"retry: "), "at once, with nothing to send yet"
            gate.set()
            await again.until(lambda stream: stream.terminated)
    assert [data for _, data in complete_events(again.body)] == ["2", '{"status":"completed"}']


async def test_a_run_that_is_stopped_while_its_source_opens_closes_what_was_opened() -> None:
    closed = anyio.Event()

    class Opened:
        def __aiter__(self) -> "Opened":
            return self

        async def __anext__(self) -> int:
            raise AssertionError("nobody wants it any more")

        async def aclose(self) -> None:
            closed.set()

    async def opener(after: int) -> AsyncIterator[int]:
        [log] = list(streams.log.runs.values())
        await streams.runs.cancel(log)
        return Opened()

    streams: Any = Streams(log=ListLog())
    with pytest.raises(RunGone, match="stopped before it began"):
        await streams.runs.start(counter, streams.policy, opener, None)
    assert closed.is_set()
