"""What every wire promises, whatever its format.

A wire's own client, an independent parser, reads what it sends. Add yours to WIRES.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

import httpx
import httpx_sse
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import Wire
from streams.event import COMPLETED, End, EventId, encode_json, frame
from streams.log import RunInfo
from streams.wires import EventStream
from streams.wires.jsonlines import JSONLines
from streams.wires.openai.chat import ChatAnswer, ChatWire, parse
from streams.wires.openai.kept import REQUEST, Kept
from streams.wires.openai.responses import ResponsesWire
from streams.wires.ui_stream import UIStream
from tests.support.turns import at_once
from tests.support.ui_messages import chunks_of, ui_message

INFO = RunInfo(run="A" * 22, source="s", started=datetime.now(UTC))
KEPT = Kept(response={"model": msgspec.Raw(b'"m"')})


class Read(NamedTuple):
    """What a client has read: how many events, their text, and what it knows of the end."""

    events: int
    text: str
    ended: bool
    lost: bool
    """Whether it knows that events are missing."""


def event_stream(body: bytes) -> list[httpx_sse.ServerSentEvent]:
    response = httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})
    return list(httpx_sse.EventSource(response).iter_sse())


def by_event_source(body: bytes) -> Read:
    events = event_stream(body)
    names = [event.event for event in events]
    text = "".join(event.json() for event in events if event.event == "message")
    return Read(len(events), text, "end" in names, "gap" in names)


def by_lines(body: bytes) -> Read:
    events = [json.loads(line) for line in body.decode().splitlines() if line]
    names = [event["event"] for event in events]
    text = "".join(event["data"] for event in events if event["event"] == "message")
    return Read(len(events), text, "end" in names, "gap" in names)


def by_chat(body: bytes) -> Read:
    datas = [event.data for event in event_stream(body)]
    chunks = [json.loads(data) for data in datas if data != "[DONE]"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if "choices" in chunk]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return Read(len(datas), text, "[DONE]" in datas, "error" in chunks[-1])


def by_responses(body: bytes) -> Read:
    events = [json.loads(event.data) for event in event_stream(body)]
    types = [event["type"] for event in events]
    text = "".join(event["delta"] for event in events if "delta" in event)
    lost = any(event.get("code") == "gone" for event in events)
    ended = types[-1] in ("response.completed", "response.failed")
    return Read(len(events), text, ended, lost)


def by_ui(body: bytes) -> Read:
    message = ui_message(body)
    lost = message.error is not None and "no longer retained" in message.error
    return Read(len(chunks_of(body)), message.text, message.done, lost)


def chat() -> Wire:
    request, _ = at_once(parse(b'{"model":"m","messages":[{"role":"user","content":"?"}]}'))
    return ChatWire(INFO, ChatAnswer(INFO, request, None))


class Case(NamedTuple):
    wire: Callable[[], Wire]
    read: Callable[[bytes], Read]


WIRES = {
    "event stream": Case(lambda: EventStream((1.0, 1.0)), by_event_source),
    "JSON Lines": Case(JSONLines, by_lines),
    "chat completions": Case(chat, by_chat),
    "responses": Case(lambda: ResponsesWire(INFO), by_responses),
    "UI messages": Case(lambda: UIStream(INFO), by_ui),
}

every_wire = pytest.mark.parametrize("case", WIRES.values(), ids=WIRES.keys())

TEXTS = st.lists(st.text(min_size=1), max_size=6)


def frames_of(texts: Sequence[str], end: End | None = COMPLETED) -> list[bytes]:
    """The frames of a run that yields these texts, with the preface that one wire puts into it."""
    run = INFO.run.encode()
    preface = (REQUEST.encode(), encode_json(KEPT))
    datas = [(None, encode_json(text)) for text in texts]
    events = [(b"start", INFO.start), preface, *datas, *([(b"end", end.encode())] if end else [])]
    return [frame(run, number, name, data) for number, (name, data) in enumerate(events)]


def sent(wire: Wire, pieces: Sequence[bytes], between: bytes = b"") -> bytes:
    """The body of a response that gets these pieces from its log."""
    body = wire.begin()
    for number, piece in enumerate(pieces):
        if not wire.done:
            body += wire.feed(piece) if number else wire.start(piece, "/runs/x")
            body += between
    return body + wire.finish()


@every_wire
@given(TEXTS)
def test_a_client_reads_the_text_of_all_events_and_knows_that_there_is_no_more(
    case: Case, texts: list[str]
) -> None:
    read = case.read(sent(case.wire(), [b"".join(frames_of(texts))]))
    assert (read.text, read.ended, read.lost) == ("".join(texts), True, False)


@every_wire
@given(TEXTS, st.data())
def test_the_bytes_do_not_depend_on_the_pieces_in_which_the_log_gives_them(
    case: Case, texts: list[str], data: st.DataObject
) -> None:
    frames = frames_of(texts)
    cuts = data.draw(st.sets(st.integers(1, len(frames) - 1)))
    bounds = [0, *sorted(cuts), len(frames)]
    pieces = [b"".join(frames[a:b]) for a, b in pairwise(bounds)]
    assert sent(case.wire(), pieces) == sent(case.wire(), [b"".join(frames)])


@every_wire
@given(TEXTS, st.data())
def test_many_bytes_become_the_same_as_few(
    case: Case, texts: list[str], data: st.DataObject
) -> None:
    frames = frames_of(texts)
    cut = data.draw(st.integers(1, len(frames)))
    wire = case.wire()
    body = wire.begin() + wire.start(b"".join(frames[:1]), "/runs/x")
    for piece in (frames[1:cut], frames[cut:]):
        body += at_once(wire.feed_large(b"".join(piece)))
    assert body + wire.finish() == sent(case.wire(), frames)


@pytest.mark.parametrize("case", [case for case in WIRES.values() if case.wire().stateful])
@given(TEXTS, st.data())
def test_a_stateful_wire_that_resumes_gives_the_rest_of_what_it_had_given(
    case: Case, texts: list[str], data: st.DataObject
) -> None:
    frames = frames_of(texts)
    after = data.draw(st.integers(0, len(frames) - 2))
    had = case.wire()
    before = had.begin() + had.start(frames[0], None) + had.feed(b"".join(frames[1 : after + 1]))
    resumed = case.wire()
    resumed.resume(after)
    cut = data.draw(st.integers(1, len(frames)))
    rest = sent(resumed, [b"".join(frames[:cut]), b"".join(frames[cut:])])
    assert before + rest == sent(case.wire(), frames)


@every_wire
def test_a_heartbeat_after_any_piece_is_no_event(case: Case) -> None:
    frames, wire = frames_of(["a", "b\n", "c"]), case.wire()
    with_heartbeats = sent(wire, frames, between=wire.heartbeat)
    assert case.read(with_heartbeats) == case.read(sent(case.wire(), frames))
    assert wire.heartbeat.endswith(b"\n"), "a client that reads lines gets it at once"


@every_wire
@pytest.mark.parametrize("end", [None, End.cancelled("stopped"), End.failed(ValueError("x"))])
def test_a_client_can_tell_a_cut_and_a_failure_from_a_completed_run(
    case: Case, end: End | None
) -> None:
    completed = sent(case.wire(), frames_of(["a", "b"]))
    body = sent(case.wire(), frames_of(["a", "b"], end))
    assert body != completed
    assert case.read(body).text == "ab"
    if end is None:
        assert not case.read(body).ended


@every_wire
@pytest.mark.parametrize("missed", [2, None])
def test_a_client_is_told_that_events_are_lost(case: Case, missed: int | None) -> None:
    wire, frames = case.wire(), frames_of(["a", "b", "c"])
    body = wire.begin() + wire.start(frames[0], None) + wire.feed(frames[1])
    body += wire.gap(missed, None if missed is None else EventId(INFO.run, 3))
    if not wire.done:
        body += wire.feed(b"".join(frames[4:]))
    assert case.read(body + wire.finish()).lost


@every_wire
def test_a_run_that_has_ended_before_its_start_event_is_sent(case: Case) -> None:
    end = frame(INFO.run.encode(), 0, b"end", End.cancelled("stopped").encode())
    assert sent(case.wire(), [end])


@every_wire
def test_the_media_type_and_the_headers_fit_into_a_response(case: Case) -> None:
    wire: Any = case.wire()
    for text in (wire.media_type, *wire.headers().keys(), *wire.headers().values()):
        assert text.isascii()
        assert text.isprintable()
    assert not wire.done
