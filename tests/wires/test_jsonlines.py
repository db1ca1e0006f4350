"""JSON Lines: their bytes, who gets them, and that they are one object a line whatever is sent."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streams import Event, StreamError, Streams, source
from streams.event import EventId, frame, parse_frames, payload
from streams.sources import clock, counter, tokens
from streams.wires import jsonlines
from streams.wires.jsonlines import MAX_SHARED, NOTHING, JSONLines, Lines
from tests.support.servers import client_of, connection, dechunked, serving, until
from tests.support.sources import gated

LINES = {"Accept": "application/jsonl"}
ACCEPT = "Accept: application/jsonl\r\n"
RUN = "A" * 22


def rows(body: str | bytes) -> list[Any]:
    """What each line contains. The empty lines are heartbeats."""
    text = body if isinstance(body, str) else body.decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines() if line]


def data_of(value: Any) -> Any:
    """The data of an event, as a client of JSON Lines gets it."""
    [row] = rows(JSONLines().feed(frame(RUN.encode(), 1, *payload(value))))
    assert row.keys() == {"id", "event", "data"}
    return row["data"]


async def test_a_stream_byte_for_byte() -> None:
    @source
    async def several() -> AsyncIterator[Any]:
        yield {"number": 0}
        yield Event("é\u2028", event="name")
        yield Event(text="two\nlines")

    async with (
        serving(Streams([several])) as url,
        connection(url, "/streams/several", headers=ACCEPT) as stream,
    ):
        await stream.until(lambda stream: stream.terminated, "the stream has ended")
        run = stream.run
        assert "content-type: application/jsonl\r\n" in stream.head
        assert "cache-control: no-store, no-transform\r\n" in stream.head
        assert "vary: accept\r\n" in stream.head
        assert f"content-location: /runs/{run.lower()}" in stream.head
        assert stream.body.decode() == (
            f'{{"id":"{run}.0","event":"start",'
            f'"data":{{"run":"{run}","source":"several","url":"/runs/{run}"}}}}\n'
            f'{{"id":"{run}.1","event":"message","data":{{"number":0}}}}\n'
            f'{{"id":"{run}.2","event":"name","data":"é\\u2028"}}\n'
            f'{{"id":"{run}.3","event":"message","data":"two\\nlines"}}\n'
            f'{{"id":"{run}.4","event":"end","data":{{"status":"completed"}}}}\n'
        )


@pytest.mark.parametrize("media_type", ["application/jsonl", "application/x-ndjson"])
async def test_the_media_type_that_was_asked_for_is_answered_everywhere(media_type: str) -> None:
    streams = Streams([counter])

    async def answer(request: Request) -> Response:
        return streams.response(request, lambda: counter(count=2, interval=0), name="answer")

    app = Starlette(routes=[Route("/answer", answer)])
    headers = {"Accept": media_type}
    body = {"count": 2, "interval": 0}
    async with client_of(streams) as client:
        posted = await client.post("/streams/counter", json=body, headers=headers)
        got = await client.get("/streams/counter", params=body, headers=headers)
        run = rows(got.text)[0]["data"]["run"]
        again = await client.get(f"/runs/{run}", headers=headers)
        heads = [await client.head(url, headers=headers) for url in ("/streams/counter", again.url)]
    async with client_of(app) as client:
        own = await client.get("/answer", headers=headers)
        heads.append(await client.head("/answer", headers=headers))
    for response in (posted, got, again, own):
        assert response.headers["content-type"] == media_type
        assert [row["data"] for row in rows(response.text)[1:]] == [
            {"number": 0},
            {"number": 1},
            {"status": "completed"},
        ]
    assert again.text == got.text
    assert "url" not in rows(own.text)[0]["data"], "the app does not mount Streams"
    assert [response.headers["content-type"] for response in heads] == [media_type] * 3


async def test_an_endpoint_of_ones_own_sends_an_event_stream_unless_lines_are_preferred() -> None:
    streams = Streams()

    async def answer(request: Request) -> Response:
        return streams.response(request, counter(count=1))

    async with client_of(Starlette(routes=[Route("/answer", answer)])) as client:
        for accept in ("*/*", "application/json", "application/jsonl;q=0.5, text/event-stream"):
            response = await client.get("/answer", headers={"Accept": accept})
            assert response.headers["content-type"].startswith("text/event-stream")


async def test_a_heartbeat_is_an_empty_line() -> None:
    gate = asyncio.Event()
    async with (
        serving(Streams([gated(gate)], heartbeat=0.01)) as url,
        connection(url, "/streams/gated", headers=ACCEPT) as stream,
    ):
        await stream.until(lambda stream: stream.body.endswith(b"}\n\n\n\n"), "three heartbeats")
        gate.set()
        await stream.until(lambda stream: stream.terminated, "the stream has ended")
    assert [row["data"] for row in rows(stream.body)][1:-1] == [1, 2]


async def test_a_client_resumes_after_the_last_whole_line_until_there_is_no_more() -> None:
    async with client_of(Streams([counter])) as client:
        whole = (await client.get("/streams/counter?count=5&interval=0", headers=LINES)).text
        run = rows(whole)[0]["data"]["run"]
        cut = whole[: whole.index('{"number":2') + 5]  # inside an event
        last = rows(cut[: cut.rindex("\n") + 1])[-1]["id"]
        assert last == f"{run}.2"
        for url in ("/streams/counter", f"/runs/{run}"):
            by_query = await client.get(url, params={"last_event_id": last}, headers=LINES)
            by_header = await client.get(url, headers={**LINES, "Last-Event-ID": last})
            assert by_query.text == by_header.text == whole[cut.rindex("\n") + 1 :]
            at_end = await client.get(url, params={"last_event_id": f"{run}.6"}, headers=LINES)
            assert (at_end.status_code, at_end.content) == (204, b"")


async def test_a_gap_is_a_line() -> None:
    @source(window=10_000)
    async def numbers() -> AsyncIterator[Any]:
        for number in range(200):
            yield {"number": number, "filler": "x" * 900}

    async with client_of(Streams([numbers, clock])) as client:
        run = rows((await client.get("/streams/numbers", headers=LINES)).text)[0]["data"]["run"]
        again = rows((await client.get(f"/runs/{run}", headers=LINES)).text)
        number = int(again[2]["id"].rpartition(".")[2])
        assert [row["event"] for row in again[:3]] == ["start", "gap", "message"]
        assert again[1] == {
            "id": f"{run}.{number - 1}",
            "event": "gap",
            "data": {"missed": number - 1},
        }
        async with client.stream(
            "GET", "/streams/clock", headers={**LINES, "Last-Event-ID": f"{RUN}.3"}
        ) as response:
            lines = response.aiter_lines()
            first, second = json.loads(await anext(lines)), json.loads(await anext(lines))
        assert first == {"id": None, "event": "gap", "data": {"missed": None}}
        assert second["event"] == "start"


async def test_a_failed_run_ends_with_a_line_that_says_so() -> None:
    @source
    async def fragile() -> AsyncIterator[int]:
        yield 1
        raise StreamError("no more paper")

    async with client_of(Streams([fragile])) as client:
        end = rows((await client.get("/streams/fragile", headers=LINES)).text)[-1]
    assert (end["event"], end["data"]["status"]) == ("end", "failed")
    assert end["data"]["error"] == {"type": "StreamError", "message": "no more paper"}


async def test_a_refusal_is_a_problem_and_an_overload_has_a_retry_after() -> None:
    def problem(response: httpx.Response, status: int) -> httpx.Response:
        assert response.status_code == response.json()["status"] == status
        assert response.headers["content-type"] == "application/problem+json"
        return response

    async with client_of(Streams([counter, tokens], max_runs=1)) as client:
        problem(await client.get("/streams/none", headers=LINES), 404)
        problem(await client.get("/streams/counter?count=x", headers=LINES), 422)
        refused = await client.get("/streams/tokens?status=429", headers=LINES)
        assert problem(refused, 429).headers["retry-after"] == "1"
        gone = f"/streams/counter?last_event_id={RUN}.1"
        problem(await client.get(gone, headers=LINES), 410)
        async with client.stream("GET", "/streams/counter?interval=60", headers=LINES):
            full = await client.get("/streams/counter", headers=LINES)
            assert problem(full, 503).headers["retry-after"]


async def test_the_mock_drops_the_connection_at_the_end_of_a_line() -> None:
    path = "/streams/tokens?tokens_per_second=10000&first_token=0&drop_after=3"
    async with (
        serving(Streams([tokens])) as url,
        connection(url, path, headers=ACCEPT) as stream,
    ):
        await stream.to_the_end()
    assert not stream.terminated
    assert [row["event"] for row in rows(stream.body)] == ["start", *["message"] * 3]


async def test_an_export_to_a_client_slower_than_its_source_loses_no_row() -> None:
    """The client reads on only when the source has been paused by it, or has ended."""
    count, window = 100_000, 100_000
    made = 0

    @source(window=window, send_timeout=3600)
    async def table() -> AsyncIterator[dict[str, int]]:
        nonlocal made
        for number in range(count):
            made = number + 1
            yield {"row": number}

    streams = Streams([table])
    async with (
        serving(streams) as url,
        connection(url, "/streams/table", headers=ACCEPT, receive_buffer=2**16) as stream,
    ):
        await stream.until(lambda stream: b"/runs/" in stream.received, "the headers have come")
        log = await streams.runs.find(stream.run, None)
        parts, pauses, ended = [stream.received], 0, False
        with anyio.fail_after(50):
            while not ended:
                await until(
                    lambda: log.is_full() or log.status != "running", "a pause or the end", 20
                )
                if log.status == "running":
                    pauses += 1
                    assert made < count
                    assert streams.log.bytes < 2 * window
                size = 0
                while size < 500_000 and not ended:
                    parts.append(await stream.reader.read(2**16))
                    size += len(parts[-1])
                    ended = b"".join(parts[-2:]).endswith(b"\r\n0\r\n\r\n")
    read = rows(dechunked(b"".join(parts).partition(b"\r\n\r\n")[2]))
    assert [row["data"] for row in read[1:-1]] == [{"row": number} for number in range(count)]
    assert [row["id"] for row in read] == [f"{stream.run}.{n}" for n in range(count + 2)]
    assert read[-1]["data"] == {"status": "completed"}
    assert pauses > 2


CHARACTERS = st.characters(exclude_categories=["Cs"])  # UTF-8 has no surrogates.
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(CHARACTERS),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(CHARACTERS), inner),
)
# Half of the characters have a meaning in JSON or end a line somewhere.
TEXTS = st.text(st.sampled_from('"\\\n\r[]{}:,0.e- \ttrue\u2028\u2029\x85\x0b\x1c') | CHARACTERS)


@given(VALUES)
def test_a_value_is_embedded_as_it_is_on_the_event_stream(value: Any) -> None:
    some = frame(RUN.encode(), 1, *payload(value))
    [event] = parse_frames(some)
    line = JSONLines().feed(some)
    assert line == b'{"id":"%b.1","event":"message","data":%b}\n' % (RUN.encode(), event.data)
    assert data_of(value) == value


@given(TEXTS.filter(lambda text: "\\u" not in text))  # Parsers differ about surrogates.
def test_a_text_becomes_a_string_unless_it_is_json(text: str) -> None:
    sent = text.replace("\r\n", "\n").replace("\r", "\n")  # as on the event stream
    try:
        expected = json.loads(sent, parse_constant=int)  # It raises ValueError for NaN.
    except ValueError:
        expected = sent
    assert data_of(Event(text=text)) == expected


NAMES = st.text(CHARACTERS, min_size=1).filter(lambda name: not set(name) & set("\r\n\0"))


@given(NAMES.filter(lambda name: name not in ("open", "error", "start", "end", "gap")))
def test_any_name_is_a_string(name: str) -> None:
    [row] = rows(JSONLines().feed(frame(RUN.encode(), 7, *payload(Event(1, event=name)))))
    assert row == {"id": f"{RUN}.7", "event": name, "data": 1}


def test_json_that_the_source_has_encoded_itself_becomes_one_line() -> None:
    assert data_of(msgspec.Raw(b'{\n  "a": [1,\r\n2]\n}')) == {"a": [1, 2]}
    assert data_of(msgspec.Raw(b"\xff{")) == "\ufffd{", "it is neither JSON nor UTF-8"


def test_numbers_are_not_rounded() -> None:
    line = JSONLines().feed(frame(RUN.encode(), 1, *payload([10**400, 0.1, 1e300])))
    assert line.endswith(b'"data":[1%b,0.1,1e300]}\n' % (b"0" * 400))


@pytest.mark.parametrize("text", ["[" * 500_000 + "]" * 500_000, "[" * 500_000])
def test_what_is_nested_too_deeply_to_be_checked_is_a_string(text: str) -> None:
    assert data_of(Event(text=text)) == text


def test_a_gap_names_the_event_after_which_a_client_resumes() -> None:
    wire = JSONLines()
    assert wire.gap(3, EventId("r", 3)) == b'{"id":"r.3","event":"gap","data":{"missed":3}}\n'
    assert wire.gap(None, None) == b'{"id":null,"event":"gap","data":{"missed":null}}\n'


async def test_a_line_never_ends_inside_for_clients_that_split_unicode_lines() -> None:
    @source
    async def separators() -> AsyncIterator[Any]:
        yield {"text": "a\u2028b\u2029c\x85d"}
        yield Event(text="a\u2028b\u2029c\x85d")
        yield Event(text='"a\u2028b\u2029c\x85d"', event="e\u2028")

    async with client_of(Streams([separators])) as client:
        async with client.stream("GET", "/streams/separators", headers=LINES) as response:
            read = [json.loads(line) async for line in response.aiter_lines()]
    text = "a\u2028b\u2029c\x85d"
    assert [row["data"] for row in read[1:-1]] == [{"text": text}, text, text]
    assert read[3]["event"] == "e\u2028"
    assert re.fullmatch(r"[\w-]+\.3", read[3]["id"])


def of_size(size: int) -> bytes:
    data = b'"%b"' % (b"x" * (size - len(frame(RUN.encode(), 1, None, b'""'))))
    frames = frame(RUN.encode(), 1, None, data)
    assert len(frames) == size
    return frames


@pytest.mark.parametrize(("size", "is_shared"), [(MAX_SHARED, True), (MAX_SHARED + 1, False)])
def test_readers_of_the_same_piece_share_its_lines_until_a_stream_ends(
    size: int, is_shared: bool
) -> None:
    frames = of_size(size)
    shared = Lines()
    one, other = JSONLines(shared=shared), JSONLines("application/x-ndjson", shared)
    lines = one.feed(frames)
    assert (other.feed(frames) is lines) is is_shared
    assert other.feed(frames) == one.feed(bytes(bytearray(frames))) == lines
    other.feed(of_size(200))
    assert one.feed(frames) == lines
    assert one.finish() == b""
    assert shared.newest == NOTHING, "nothing of a run is kept"


async def test_two_apps_share_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Lines] = []

    class Counted(Lines):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(jsonlines, "Lines", Counted)
    apps = [Streams([counter]), Streams([counter])]
    for app in (*apps, *apps):
        async with client_of(app) as client:
            await client.get("/streams/counter?count=1&interval=0.01", headers=LINES)
    assert len(made) == 2
