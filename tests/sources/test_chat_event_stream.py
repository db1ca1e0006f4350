"""The event streams of `chat`, without a network, with httpx-sse as the oracle."""

import tracemalloc

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given
from hypothesis import strategies as st

from streams.sources.chat.event_stream import (
    STRAY_BYTES,
    EventStream,
    NotUTF8,
    ServerEvent,
    TooLong,
)

FIELDS = st.sampled_from(["data", "event", "id", "retry", "", "other"])
TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0"))
LINES = st.tuples(FIELDS, st.sampled_from([":", ": "]), TEXTS).map("".join)
STREAMS = st.lists(
    st.tuples(LINES | st.just(""), st.sampled_from(["\n", "\r\n", "\r"])).map("".join)
).map(lambda lines: "".join(lines).encode() + b"\n\n")


def events_in(*parts: bytes, limit: int = 10**6, strict: bool = False) -> list[ServerEvent]:
    stream = EventStream(limit, strict=strict)
    events = [event for part in parts for event in stream.feed(part)]
    return [*events, *stream.finish()]


def by_httpx_sse(body: bytes) -> list[ServerEvent]:
    """The events that have data, as httpx-sse reads them."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=body)
    events = EventSource(response).iter_sse()
    return [ServerEvent(e.event, e.data) for e in events if e.data.encode().strip()]


@given(STREAMS)
def test_it_reads_what_httpx_sse_reads(body: bytes) -> None:
    assert [(e.name or "message", e.data) for e in events_in(body)] == [
        (e.name or "message", e.data) for e in by_httpx_sse(body)
    ]


@given(STREAMS, st.lists(st.integers(0, 200)))
def test_the_parts_do_not_matter(body: bytes, cuts: list[int]) -> None:
    ends = sorted(min(cut, len(body)) for cut in cuts)
    parts = [body[begin:end] for begin, end in zip([0, *ends], [*ends, len(body)], strict=True)]
    assert events_in(*parts) == events_in(body)


def test_a_character_may_be_cut() -> None:
    body = "data: 😀\n\n".encode()
    parts = [body[at : at + 1] for at in range(len(body))]
    assert events_in(*parts) == [ServerEvent("", "😀")]


def test_a_line_may_be_as_long_as_the_limit() -> None:
    for line in (b"data: aaaa", b": comments", b"event: aaa"):
        assert len(line) == 10
        events_in(line, b"\n\n", limit=10)
        events_in(line + b"\n\n", limit=10)
        for parts in ([line + b"\n\n"], [line], [line[:5], line[5:]]):
            with pytest.raises(TooLong):
                events_in(*parts, limit=9)


def test_what_is_outside_of_events_is_kept_up_to_a_limit() -> None:
    stream = EventStream(10**6)
    assert not list(stream.feed(b"<html>\ndata: 1\n<b>\n" + 10_000 * b"a" + b"\n"))
    assert stream.stray.startswith(b"<html>\n<b>\naaa")
    assert len(stream.stray) == STRAY_BYTES


def test_a_bare_json_document_is_an_event() -> None:
    assert events_in(b'data: 1\n\n{"a":1}\n[2]') == [
        ServerEvent("", "1"),
        ServerEvent("", '{"a":1}'),
        ServerEvent("", "[2]"),
    ]
    assert events_in(b'{\n"a":1\n}\n') == [ServerEvent("", '{\n"a":1\n}')]


def test_another_charset_is_noticed_only_if_it_is_expected() -> None:
    body = b"data: \xfcber\n\n"
    assert events_in(body) == [ServerEvent("", "\ufffdber")]
    with pytest.raises(NotUTF8):
        events_in(body, strict=True)


def test_many_comments_take_no_memory() -> None:
    stream = EventStream(1000)
    tracemalloc.start()
    try:
        for _ in range(100):
            assert not list(stream.feed(1000 * b": comment\n\n"))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
