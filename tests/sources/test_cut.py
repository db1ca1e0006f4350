"""The middleware that cuts the connection: where it cuts, and how, over apps made for it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streams.sources.cut import CutConnection

START = b'retry: 1000\nid: r.0\nevent: start\ndata: {"run":"r"}\n\n'
END = b'id: r.4\nevent: end\ndata: {"status":"completed"}\n\n'
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'

UVICORN = {"asgi": {"version": "3.0", "spec_version": "2.3"}}
HYPERCORN_1 = {"asgi": {"version": "3.0", "spec_version": "2.1"}, "extensions": {}}
HYPERCORN_2 = {**HYPERCORN_1, "extensions": {"http.response.push": {}}}
DAPHNE = {"asgi": {"version": "3.0"}}


def event(text: str) -> bytes:
    return b'data: {"message":{"role":"assistant","content":"%b"},"done":false}\n\n' % text.encode()


def chunk(text: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode()


REASONING = b'data: {"message":{"content":"","reasoning":"a"}}\n\n'
CALL = b'data: {"tool_calls":[{"index":0,"function":{"name":"f","arguments":""}}]}\n\n'
ARGUMENTS = b'data: {"tool_calls":[{"index":0,"function":{"arguments":"{\\"content\\":\\"x"}}]}\n\n'
NO_ARGUMENTS = b'data: {"tool_calls":[{"index":0,"function":{"arguments":""}}]}\n\n'
A, B, C = event("a"), event("b"), event("c")


def event_stream(
    *writes: bytes, content_type: bytes = b"text/event-stream; charset=utf-8"
) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in writes:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    return app


async def sent_by(app: ASGIApp, server: dict[str, Any] = UVICORN) -> list[Message]:
    """The messages that a server gets from the app."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the app has no reason to receive")

    await app({"type": "http", "method": "GET", **server}, receive, send)
    return sent


async def body_of(app: ASGIApp) -> bytes:
    return b"".join(message.get("body", b"") for message in await sent_by(app))


@pytest.mark.parametrize(
    ("pieces", "writes", "body"),
    [
        (0, [START, A], START),
        (0, [START + A], START),
        (2, [START, A, B, C, END], START + A + B),
        (2, [START, A + B + C, END], START + A + B),
        (2, [START, A, b":\n", b":\n", B + b":\n", C], START + A + b":\n:\n" + B),
        (1, [START, event(""), A, B], START + event("") + A),
        (1, [START, event(r"\"content\":\"x"), B], START + event(r"\"content\":\"x")),
        (2, [START, REASONING, CALL, ARGUMENTS], START + REASONING + CALL),
        (3, [START, REASONING, CALL, ARGUMENTS, A], START + REASONING + CALL + ARGUMENTS),
        (1, [START, NO_ARGUMENTS, A, B], START + NO_ARGUMENTS + A),
        (0, [ROLE, chunk("a")], ROLE),
        (1, [ROLE, chunk("a") + chunk("b")], ROLE + chunk("a")),
    ],
)
async def test_an_event_stream_is_cut_at_the_end_of_an_event(
    pieces: int, writes: list[bytes], body: bytes
) -> None:
    assert await body_of(CutConnection(event_stream(*writes), pieces)) == body


@given(st.integers(1, len(START + A + B) - 1), st.integers(1, len(START + A + B) - 1))
async def test_an_event_stream_is_cut_at_the_same_byte_however_it_is_written(
    first: int, second: int
) -> None:
    whole = START + A + B + C
    first, second = sorted((first, second))
    writes = whole[:first], whole[first:second], whole[second:]
    assert await body_of(CutConnection(event_stream(*writes), 2)) == START + A + B


async def test_an_event_stream_with_fewer_pieces_passes_unchanged() -> None:
    app = event_stream(START, A, B, C, END)
    assert await sent_by(CutConnection(app, 4)) == await sent_by(app)


async def test_nothing_is_sent_after_the_cut() -> None:
    async def persistent(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await event_stream(START, A, B)(scope, receive, send)
        finally:
            await send({"type": "http.response.body", "body": C, "more_body": False})

    assert await body_of(CutConnection(persistent, 1)) == START + A


async def test_an_exception_of_the_app_passes() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        await sent_by(CutConnection(broken, 1))


@pytest.mark.parametrize(
    ("server", "more_body"),
    [(UVICORN, True), (HYPERCORN_1, True), (HYPERCORN_2, False), (DAPHNE, False)],
)
async def test_the_body_is_ended_only_on_servers_that_would_leave_it_open(
    server: dict[str, Any], more_body: bool
) -> None:
    stream = CutConnection(event_stream(START, A, B), 1)
    completion = CutConnection(Response(b'{"completion_tokens":3}'), 3)
    for app in (stream, completion):
        last = (await sent_by(app, server))[-1]
        assert last["body"]
        assert last["more_body"] is more_body


@pytest.mark.parametrize("pieces", [0, 7])
async def test_a_completion_in_json_is_cut_in_the_middle_and_has_no_length(pieces: int) -> None:
    json = b'{"choices":[],"usage":{"completion_tokens":7}}'
    response = Response(json, media_type="application/json", headers={"X-Request-Id": "r"})
    start, body = await sent_by(CutConnection(response, pieces))
    assert start["headers"] == [(b"x-request-id", b"r"), (b"content-type", b"application/json")]
    assert body["body"] == json[: len(json) // 2]


@pytest.mark.parametrize(
    "json", [b'{"usage":{"completion_tokens":7}}', b'{"error":{"message":"no"}}', b""]
)
async def test_a_shorter_completion_and_an_error_pass_unchanged(json: bytes) -> None:
    response = Response(json, media_type="application/json")
    assert await sent_by(CutConnection(response, 8)) == await sent_by(response)


async def test_a_stream_of_another_type_passes_unchanged() -> None:
    app = event_stream(START, A, B, content_type=b"text/plain")
    assert await sent_by(CutConnection(app, 0)) == await sent_by(app)


@pytest.mark.parametrize("media_type", [b"application/jsonl", b"application/x-ndjson"])
async def test_json_lines_are_cut_at_the_end_of_a_line(media_type: bytes) -> None:
    lines = [b'{"event":"start"}\n', *(part.partition(b" ")[2][:-1] for part in (A, B, C))]
    app = event_stream(b"".join(lines), content_type=media_type)
    assert await body_of(CutConnection(app, 2)) == b"".join(lines[:3])
    in_two = event_stream(lines[0] + lines[1][:9], lines[1][9:] + b"\n", content_type=media_type)
    assert await body_of(CutConnection(in_two, 1)) == b"".join(lines[:2])
