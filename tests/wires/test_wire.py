"""The seam between a response and a wire, and the event stream as a wire."""

from collections.abc import AsyncIterator, Mapping

import anyio
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import Streams, Wire, source
from streams.event import EventId, LoggedEvent, frame
from streams.wires import EventStream
from tests.support.servers import client_of, until


class Lines(Wire):
    """Writes each event as a line of text, and is done after `enough` events."""

    media_type = "text/plain"

    def __init__(self, enough: int = 1000) -> None:
        self._enough = enough

    def headers(self) -> Mapping[str, str]:
        return {"X-Lines": "yes"}

    def begin(self) -> bytes:
        return b"begin\n"

    def event(self, event: LoggedEvent) -> bytes:
        self._enough -= 1
        self.done = not self._enough
        return b"%d %b %b\n" % (event.number, event.name.encode(), event.data)

    def gap(self, missed: int | None, last: EventId | None) -> bytes:
        return f"missed {missed}, up to {last}\n".encode()

    def finish(self) -> bytes:
        return b"finish\n"


@source
async def numbers(count: int = 3, stay: bool = False) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    if stay:
        await anyio.sleep_forever()


def lines(streams: Streams, wire: Wire) -> Starlette:
    """An app with the route /lines, which reads a new run of `numbers` through a wire."""

    async def read(request: Request) -> Response:
        arguments = numbers.from_query(request.query_params)
        log = await streams.start(request, numbers, arguments)
        return streams.read(request, log, numbers, wire)

    return Starlette(
        routes=[Route("/lines", streams.endpoint(read)), Mount("/日本", streams)],
    )


async def get(wire: Wire, path: str = "/lines") -> httpx.Response:
    async with client_of(lines(Streams([numbers]), wire)) as client:
        return await client.get(path)


async def test_a_wire_sets_the_media_type_the_headers_and_every_byte_of_the_body() -> None:
    response = await get(Lines())
    assert response.headers["content-type"].startswith("text/plain")
    assert response.headers["x-lines"] == "yes"
    assert response.headers["cache-control"] == "no-store, no-transform"
    first, start, *rest = response.text.splitlines()
    assert first == "begin"
    assert start.startswith('0 start {"run":')
    assert start.endswith('"source":"numbers"}'), "only an event stream adds the URL"
    assert rest == [
        "1 message 0",
        "2 message 1",
        "3 message 2",
        '4 end {"status":"completed"}',
        "finish",
    ]


async def test_a_wire_may_have_attributes_of_any_name() -> None:
    class Own(Lines):
        _after = _had = 1000

    assert "3 message 2" in (await get(Own())).text


async def test_a_wire_that_is_done_ends_the_response_before_the_run_ends() -> None:
    streams = Streams([numbers])
    async with client_of(lines(streams, Lines(enough=3))) as client:
        response = await client.get("/lines?count=100000")
        assert response.text.splitlines()[-2:] == ["2 message 1", "finish"]
        await until(lambda: not streams.log.readers, "the reader has detached")


async def test_a_wire_that_is_done_at_a_gap_does_not_wait_for_the_next_event() -> None:
    streams = Streams([numbers])

    class Late(Lines):
        """Lets the log drop all events between the start of the run and its reading."""

        def begin(self) -> bytes:
            [log] = streams.log.runs  # type: ignore[attr-defined]
            log.buffer.trim(0, log.last)
            return super().begin()

        def gap(self, missed: int | None, last: EventId | None) -> bytes:
            self.done = True
            return super().gap(missed, last)

    async with client_of(lines(streams, Late())) as client:
        body = (await client.get("/lines?stay=true")).text.splitlines()
    assert body[-2].startswith("missed 3")
    assert body[-1] == "finish"


async def test_a_wire_is_told_of_lost_history_before_what_follows() -> None:
    streams = Streams([numbers])
    run = "A" * 22

    class Late(Lines):
        """Lets the log drop its first events between the start of the run and its reading."""

        def begin(self) -> bytes:
            [log] = streams.log.runs  # type: ignore[attr-defined]
            log.buffer.trim(0, 2)
            return super().begin()

    async with client_of(lines(streams, Late())) as client:
        body = (await client.get("/lines")).text.splitlines()
    assert body[0] == "begin"
    assert body[1].startswith("0 start ")
    run = body[1].partition('"run":"')[2][:22]
    assert body[2] == f"missed 2, up to {run}.2"
    assert body[3].startswith("3 message 2")


def test_an_event_stream_passes_frames_on_unchanged_and_announces_a_gap_as_an_event() -> None:
    wire = EventStream((1.0, 1.0))
    some = frame(b"r", 4, None, b"1") + frame(b"r", 5, b"tick", b"2")
    assert wire.begin() == b"retry: 1000\n"
    assert wire.feed(some) is some
    assert wire.gap(3, EventId("r", 3)) == b'id: r.3\nevent: gap\ndata: {"missed":3}\n\n'
    assert wire.gap(None, None) == b'event: gap\ndata: {"missed":null}\n\n'
    assert (wire.finish(), wire.done) == (b"", False)


def test_an_event_stream_adds_the_url_of_the_run_to_its_start_event_only() -> None:
    wire = EventStream((1.0, 1.0))
    data = b'{"run":"r","source":"}"}'
    start, rest = frame(b"r", 0, b"start", data), frame(b"r", 1, None, b"{}")
    with_url = frame(b"r", 0, b"start", data[:-1] + b',"url":"/runs/r"}')
    assert wire.start(start + rest, "/runs/r") == with_url + rest
    assert wire.start(start + rest, None) == start + rest
    ended = frame(b"r", 0, b"end", b'{"status":"cancelled"}')
    assert wire.start(ended, "/runs/r") == ended
