"""response.py: the bytes that a reader receives, over real sockets."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import httpx_sse
import pytest
from starlette.types import Message, Scope

from streams import Event, Streams, source
from streams.sources import clock, counter
from tests.support.servers import client_of, connection, every_event, serving, until
from tests.support.sources import gated


def parsed(body: bytes) -> list[httpx_sse.ServerSentEvent]:
    """The events of a body as httpx-sse parses them."""
    headers = {"Content-Type": "text/event-stream"}
    response = httpx.Response(200, content=body, headers=headers)
    return list(httpx_sse.EventSource(response).iter_sse())


async def test_a_stream_byte_for_byte() -> None:
    @source
    async def both() -> AsyncIterator[Any]:
        yield {"number": 0}
        yield Event("é", event="name")
        yield Event(text="two\nlines")

    async with serving(Streams([both])) as url, connection(url, "/streams/both") as stream:
        await stream.until(lambda stream: stream.terminated, "the stream has ended")
        run = stream.run
        first, _, rest = stream.body.decode().partition("\n")
    assert re.fullmatch(r"retry: [123]\d\d\d", first)
    assert rest == (
        f"id: {run}.0\nevent: start\n"
        f'data: {{"run":"{run}","source":"both","url":"/runs/{run}"}}\n\n'
        f'id: {run}.1\ndata: {{"number":0}}\n\n'
        f'id: {run}.2\nevent: name\ndata: "é"\n\n'
        f"id: {run}.3\ndata: two\ndata: lines\n\n"
        f'id: {run}.4\nevent: end\ndata: {{"status":"completed"}}\n\n'
    )


async def test_the_headers_of_a_stream() -> None:
    async with serving(Streams([counter])) as url, connection(url, "/streams/counter") as stream:
        await stream.until(lambda stream: stream.body, "the body has begun")
        names = [line.partition(":")[0] for line in stream.head.splitlines()[1:]]
        assert stream.head.startswith("http/1.1 200")
        assert "cache-control: no-store, no-transform" in stream.head
        assert "x-accel-buffering: no" in stream.head
        assert "incremental: ?1" in stream.head  # RFC 10036
        assert "content-type: text/event-stream; charset=utf-8" in stream.head
        assert f"content-location: /runs/{stream.run.lower()}" in stream.head
        assert "connection" not in names


async def test_the_start_event_arrives_before_the_source_yields() -> None:
    @source
    async def silent() -> AsyncIterator[Any]:
        await anyio.sleep_forever()
        yield

    async with serving(Streams([silent])) as url, connection(url, "/streams/silent") as stream:
        await stream.until(
            lambda stream: stream.body.endswith(b"}\n\n"),
            "the start event has arrived",
        )
        assert re.match(rb"retry: \d+\nid: [\w-]+\.0\nevent: start\ndata: ", stream.body)


async def test_each_connection_gets_a_random_retry_within_the_range() -> None:
    async with client_of(Streams([counter], retry=(2, 5))) as client:
        responses = [await client.get("/streams/counter?count=0") for _ in range(20)]
    times = [int(response.text.splitlines()[0].removeprefix("retry: ")) for response in responses]
    assert len(set(times)) > 10
    assert all(2000 <= time <= 5000 for time in times)


async def test_a_heartbeat_is_one_comment_line_and_not_an_empty_event() -> None:
    gate = asyncio.Event()
    async with (
        serving(Streams([gated(gate)], heartbeat=0.01)) as url,
        connection(url, "/streams/gated") as stream,
    ):
        await stream.until(
            lambda stream: b"\n\n:\n:\n:\n" in stream.body, "three heartbeats have arrived"
        )
        gate.set()
        await stream.until(lambda stream: stream.terminated, "the stream has ended")
        events = parsed(stream.body)
    assert [event.data for event in events][1:] == ["1", "2", '{"status":"completed"}']


async def test_an_independent_parser_reads_the_events_that_the_source_yielded() -> None:
    async with client_of(Streams([counter])) as client:
        events = await every_event(client, "/streams/counter?count=300&interval=0")
    assert [event.event for event in events] == ["start", *["message"] * 300, "end"]
    assert [event.json() for event in events[1:-1]] == [{"number": n} for n in range(300)]
    run = events[0].json()["run"]
    assert [event.id for event in events] == [f"{run}.{n}" for n in range(302)]
    assert events[-1].json() == {"status": "completed"}


async def test_a_stalled_reader_does_not_hold_up_199_others_of_a_shared_run() -> None:
    gate = asyncio.Event()

    @source(shared=True, window=200_000, heartbeat=3600, send_timeout=3600)
    async def feed() -> AsyncIterator[Any]:
        await gate.wait()
        for number in range(100):
            yield {"number": number, "filler": "x" * 1000}
            await anyio.lowlevel.checkpoint()

    streams = Streams([feed])
    async with (
        serving(streams) as url,
        connection(url, "/streams/feed", receive_buffer=4096) as stalled,
        anyio.create_task_group() as group,
    ):
        bodies: list[bytes] = []

        async def view() -> None:
            async with connection(url, "/streams/feed") as stream:
                await stream.until(lambda stream: stream.terminated, "the stream has ended", 40)
                bodies.append(stream.body.partition(b"\n")[2])

        for _ in range(199):
            group.start_soon(view)
        await until(lambda: streams.log.readers == 200, "200 readers are attached", 20)
        gate.set()
        await until(lambda: len(bodies) == 199, "199 readers have the whole stream", 20)
        assert len(set(bodies)) == 1
        assert bodies[0].count(b"\ndata: ") == 102
        assert streams.log.events == 102, "all readers share one run"
        await stalled.until(lambda stream: stream.terminated, "the stalled stream has ended", 20)
        assert stalled.body.partition(b"\n")[2] == bodies[0]


async def test_a_viewer_that_joins_a_shared_run_gets_the_newest_event_and_those_after_it() -> None:
    streams = Streams([clock])
    async with serving(streams) as url, connection(url, "/streams/clock?interval=0.02") as first:
        await first.until(lambda stream: b".10\n" in stream.body, "event 10 has arrived")
        async with connection(url, "/streams/clock?interval=0.02") as second:
            await second.until(
                lambda stream: stream.body.count(b"\ndata: ") >= 4, "4 events have arrived"
            )
            await first.until(
                lambda stream: stream.body.count(b"\ndata: ") >= 20, "20 events have arrived"
            )
            ids = [int(n) for n in re.findall(rb"id: [\w-]+\.(\d+)\n", second.body)]
            assert ids[0] == 0
            assert b'"url":"/runs/%b"}\n\n' % second.run.encode() in second.body
            assert ids[1] >= 9
            assert ids[1:] == list(range(ids[1], ids[1] + len(ids) - 1))
            assert first.run == second.run


async def test_a_client_that_never_reads_pauses_the_source_and_is_disconnected() -> None:
    """When it reconnects, it loses no event."""
    produced = 0

    @source(window=300_000, send_timeout=0.2, heartbeat=0.05, linger=3600)
    async def flood() -> AsyncIterator[str]:
        nonlocal produced
        while True:
            produced += 1
            yield "x" * 1000

    streams = Streams([flood])
    async with (
        serving(streams) as url,
        connection(url, "/streams/flood", receive_buffer=4096) as stream,
    ):
        await until(lambda: streams.log.readers == 1, "the reader is attached")
        await until(lambda: not streams.log.readers, "the reader is disconnected", 10)
        assert produced < 10_000, "the source pauses when the window and the sockets are full"
        assert streams.log.bytes <= 320_000
        await stream.to_the_end(10)
        assert not stream.terminated
        last = re.findall(rb"id: ([\w-]+\.\d+)\n(?:data: .*\n\n)", stream.body)[-1].decode()
        number = int(last.partition(".")[2])
        async with connection(url, "/streams/flood", headers=f"Last-Event-ID: {last}\r\n") as again:
            await again.until(lambda stream: b"\ndata: " in stream.body, "an event has arrived")
            assert re.match(rb"retry: \d+\nid: [\w-]+\.%d\n" % (number + 1), again.body)


async def test_a_gap_event_precedes_the_events_after_lost_history() -> None:
    @source(window=10_000)
    async def numbers() -> AsyncIterator[Any]:
        for number in range(200):
            yield {"number": number, "filler": "x" * 900}

    streams = Streams([numbers])
    async with client_of(streams) as client:
        events = await every_event(client, "/streams/numbers")
        run = events[0].json()["run"]
        assert len(events) == 202
        again = await every_event(client, "/streams/numbers", f"{run}.3")
        first = int(again[1].id.partition(".")[2])
        assert again[0].event == "gap"
        assert again[0].json() == {"missed": first - 4}
        assert again[0].id == f"{run}.{first - 1}", "a reconnect after the gap skips it"
        assert [event.data for event in again[1:]] == [event.data for event in events[first:]]
        assert again[-1].json() == {"status": "completed"}
        whole = await every_event(client, f"/runs/{run}")
        assert [event.event for event in whole[:2]] == ["start", "gap"]
        assert whole[0].data == events[0].data
        assert whole[1].json() == {"missed": first - 1}
        health = (await client.get("/health")).json()
        assert health["gaps"] == 2


async def test_the_response_of_an_idle_stream_is_completed_at_shutdown() -> None:
    gate = asyncio.Event()
    async with serving(Streams([gated(gate)])) as url:
        stream = connection(url, "/streams/gated")
        reading = await stream.__aenter__()
        await reading.until(
            lambda stream: stream.body.endswith(b"data: 1\n\n"), "event 1 has arrived"
        )
    await reading.until(lambda stream: stream.terminated, "the response is completed")
    assert b"event: end" not in reading.body
    await stream.__aexit__(None, None, None)


async def test_500_aborted_connections_leave_no_run_and_no_task() -> None:
    @source(linger=0.05)
    async def silent() -> AsyncIterator[Any]:
        yield 1
        await anyio.sleep_forever()

    streams = Streams([silent], retain=0.05)
    async with serving(streams) as url:
        before = len(asyncio.all_tasks())
        for _ in range(10):
            async with anyio.create_task_group() as group:
                for _ in range(50):
                    group.start_soon(connect_and_abort, url)
        await until(lambda: not streams.log.readers, "no reader is attached", 10)
        await until(lambda: not len(streams.log), "all runs are forgotten", 10)
        # One more task stays: sse-starlette watches for the shutdown.
        await until(
            lambda: len(asyncio.all_tasks()) <= before + 1,
            "the tasks of the streams have ended",
            10,
        )
    assert streams.log.bytes == 0
    assert streams.log.events == 1500


async def connect_and_abort(url: str) -> None:
    """Opens a stream and resets its connection after event 1."""
    async with connection(url, "/streams/silent") as stream:
        await stream.until(
            lambda stream: stream.body.endswith(b"data: 1\n\n"), "event 1 has arrived", 20
        )
        stream.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
        )


async def test_a_disconnect_detaches_the_reader_and_leaves_the_run_running() -> None:
    gate = asyncio.Event()
    streams = Streams([gated(gate)], heartbeat=3600)  # Only a disconnect detaches a reader.
    async with serving(streams) as url:
        async with connection(url, "/streams/gated") as stream:
            await stream.until(
                lambda stream: stream.body.endswith(b"data: 1\n\n"), "event 1 has arrived"
            )
            run = stream.run
        await until(lambda: not streams.log.readers, "the reader is detached")
        gate.set()
        async with httpx.AsyncClient(base_url=url) as client:
            events = await every_event(client, f"/runs/{run}")
    assert [event.data for event in events[1:3]] == ["1", "2"]


async def test_the_app_streams_when_it_is_called_without_a_server() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/streams/counter",
        "query_string": b"count=2&interval=0",
        "headers": [],
    }
    with anyio.fail_after(5):
        await Streams([counter])(scope, receive, send)
    assert sent[0]["status"] == 200
    body = b"".join(message["body"] for message in sent[1:])
    events = parsed(body)
    assert [json.loads(event.data) for event in events[1:]] == [
        {"number": 0},
        {"number": 1},
        {"status": "completed"},
    ]


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_stream_works_with_each_http_parser_of_uvicorn(http: str) -> None:
    async with client_of(Streams([counter]), http=http) as client:
        events = await every_event(client, "/streams/counter?count=3&interval=0")
    assert len(events) == 5


class Stalled:
    """A client that accepts `accepted` messages with a body and then no more."""

    def __init__(self, accepted: int) -> None:
        self.accepted = accepted
        self.bodies = 0
        self.stalled = asyncio.Event()

    async def receive(self) -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.bodies += 1
            if self.bodies > self.accepted:
                self.stalled.set()
                await anyio.sleep_forever()


def scope_of(path: str) -> Scope:
    return {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}


@pytest.mark.parametrize("accepted", [0, 1, 2], ids=["first", "event", "last"])
async def test_a_send_that_does_not_finish_is_ended_by_send_timeout_without_a_heartbeat(
    accepted: int, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    streams = Streams([gated(gate)], heartbeat=3600, send_timeout=0.05)
    client = Stalled(accepted)
    response = asyncio.ensure_future(
        streams(scope_of("/streams/gated"), client.receive, client.send)
    )
    if accepted:
        await until(lambda: client.bodies == 1, "the client has the first event")
        await anyio.sleep(0.12)  # The stream is idle for longer than send_timeout.
        assert not response.done()
        gate.set()
    await asyncio.wait_for(response, 10)
    assert client.stalled.is_set()
    assert "accepted no data for 0.05 s" in caplog.text
    assert not streams.log.readers


async def test_nothing_watches_a_response_that_has_ended() -> None:
    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        watched.append(len(responses._seen))

    streams, watched = Streams([counter]), list[int]()
    responses = streams._lifetime.responses(streams.policy.send_timeout)
    await streams({**scope_of("/streams/counter"), "query_string": b"count=1"}, receive, send)
    assert set(watched) == {1}
    assert not responses._seen


async def test_a_send_timeout_ends_a_response_once_however_long_that_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server's `send` may take longer to end than the time after which it is looked at again."""

    class SlowToEnd(Stalled):
        async def send(self, message: Message) -> None:
            try:
                await super().send(message)
            except asyncio.CancelledError:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.2)
                raise

    streams = Streams([gated(asyncio.Event())], heartbeat=3600, send_timeout=0.05)
    client = SlowToEnd(0)
    response = asyncio.ensure_future(
        streams(scope_of("/streams/gated"), client.receive, client.send)
    )
    await asyncio.wait_for(response, 10)
    assert caplog.text.count("accepted no data for 0.05 s") == 1


async def test_a_response_that_the_server_cancels_while_a_send_stalls_stays_cancelled() -> None:
    streams = Streams([gated(asyncio.Event())], heartbeat=3600, send_timeout=3600)
    client = Stalled(0)
    response = asyncio.ensure_future(
        streams(scope_of("/streams/gated"), client.receive, client.send)
    )
    await asyncio.wait_for(client.stalled.wait(), 5)
    response.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(response, 10)
