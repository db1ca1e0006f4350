"""body.py: how long a body may be, how long it may take to arrive, and clients that leave."""

import asyncio
import contextvars
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message, Scope

from streams import Streams, source, topic
from streams.body import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_VALUES,
    Bodies,
    Body,
    check_structure,
)
from streams.encoding import LARGE
from streams.errors import BodyTooLarge, BodyTooSlow, InvalidBody
from streams.sources import tokens
from tests.support.servers import Connection, client_of, connection, serving, until
from tests.support.turns import at_once, turns_and_result

opened: list[str] = []


@source
async def counted() -> AsyncIterator[int]:
    """Says when it is opened."""
    opened.append("counted")
    yield 1


@topic
def room() -> None:
    """A room."""


BODIES = {
    "/streams/counted": b"{}    ",
    "/topics/room": b"1     ",
    "/v1/chat/completions": json.dumps(
        {"model": "mock", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    ).encode(),
}


def app(**options: Any) -> Streams:
    opened.clear()
    return Streams(
        [counted, room], models={"mock": tokens}, publish=lambda request: None, **options
    )


@asynccontextmanager
async def posting(url: str, path: str, sent: int | None) -> AsyncIterator[Connection]:
    """A POST of which only the first bytes of the body are sent."""
    body = BODIES[path]
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with connection(url, path, method="POST", headers=headers) as stream:
        stream.writer.write(body[:sent])
        yield stream


def nested(depth: int) -> bytes:
    """JSON of `depth` arrays and objects, one in the other."""
    return b'{"a":[' * (depth // 2) + b"[]" * (depth % 2) + b"]}" * (depth // 2)


def refusal(content: bytes) -> str:
    """Why JSON is refused; an empty text if it is not."""
    try:
        at_once(check_structure(content))
    except InvalidBody as error:
        return str(error)
    return ""


@pytest.mark.parametrize("depth", [1, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 1000, 10_000])
def test_json_is_nested_at_most_64_deep(depth: int) -> None:
    for content in (nested(depth), b"[" * depth + b"]" * depth):
        assert ("nested deeper than 64" in refusal(content)) == (depth > MAX_DEPTH)


def test_json_has_at_most_10_000_arrays_and_objects() -> None:
    for pair in (b"[],", b"{},", b"[{}],"):
        count = MAX_CONTAINERS // (pair.count(b"[") + pair.count(b"{"))
        for more in (0, 1):
            pairs = pair * (count + more)
            assert ("10000 is the limit" in refusal(pairs)) == bool(more)


@pytest.mark.parametrize("value", ["1", '"[,"', r'"\",\\"', '"[,":"],"'])
def test_json_has_at_most_50_000_values(value: str) -> None:
    for more in (0, 1):
        values = ",".join([value] * (MAX_VALUES + more))
        content = f"{{{values}}}" if ":" in value else f"[{values}]"
        assert json.loads(content)
        assert ("50000 is the limit" in refusal(content.encode())) == bool(more)


def test_json_with_more_texts_than_values_can_have_is_refused_before_they_are_looked_at() -> None:
    members = b'"[":"]",' * MAX_VALUES
    assert refusal(members) == ""
    assert "more than 50000 values" in refusal(members + b'"[')


@pytest.mark.parametrize(
    "form", ["%s", "-%s", "0.%s", "%se1", "1e%s", '["\\\\",%s,"["]', '{"":%s}']
)
def test_a_number_has_fewer_than_100_digits_in_a_row(form: str) -> None:
    assert refusal(b"[%b]" % (form % ("9" * 99)).encode()) == ""
    error = refusal(b"[%b]" % (form % ("1234567890" * 10)).encode())
    assert error == "the body has a number of 100 digits or more; send it as a string"


@pytest.mark.parametrize("form", ['"%s"', '{"%s":1}', r'"\"%s"', r'"\\%s\\"', '"","%s",""'])
def test_a_text_may_have_any_number_of_digits(form: str) -> None:
    content = f"[{form % ('0' * 1000)}]"
    assert json.loads(content)
    assert refusal(content.encode()) == ""


@pytest.mark.parametrize("before", [0, LARGE - 50, 2 * LARGE])
def test_a_text_is_found_wherever_it_is_in_a_large_body(before: int) -> None:
    content = f'[{" " * before}"{"1" * LARGE}"]'
    assert json.loads(content)
    assert refusal(content.encode()) == ""
    assert "100 digits or more" in refusal(f"[{content},{'1' * 100}]".encode())


def test_the_check_of_a_large_body_has_turns() -> None:
    for size, turns in ((100, 0), (LARGE, 7)):
        content = b'["' + b"x" * size + b'",%b]' % (b"[]," * MAX_DEPTH + b"[]")
        assert turns_and_result(check_structure(content))[0] == turns


def test_what_closes_more_than_it_opens_is_left_to_the_decoder() -> None:
    deep = b"[" * (MAX_DEPTH + 1)
    assert "nested deeper" in refusal(deep + b"]" * (MAX_DEPTH + 1))
    assert refusal(deep + b"]" * (MAX_DEPTH + 2)) == ""


@given(
    st.recursive(
        st.text() | st.none(),
        lambda json: st.lists(json) | st.dictionaries(st.text(), json),
        max_leaves=300,
    )
)
def test_the_structure_of_any_json_is_found(value: Any) -> None:
    def depth(value: Any) -> int:
        parts = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, parts), default=0) if isinstance(value, dict | list) else 0

    text = json.dumps(["[" * 70, value]).encode()
    wrapped = b"[" * 60 + text + b"]" * 60
    assert ("nested deeper" in refusal(wrapped)) == (61 + depth(value) > MAX_DEPTH)


def test_brackets_inside_a_text_are_no_structure() -> None:
    for text in ("[" * 20_000, '\\"[' * 20_000, "\\" + "{" * 20_000):
        assert refusal(json.dumps({"value": text}).encode()) == ""


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, *range(960, 1010, 9), 100_000])
async def test_json_of_any_depth_is_a_refusal(path: str, depth: int) -> None:
    content = nested(depth)
    async with client_of(app()) as client:
        headers = {"Content-Type": "application/json"}
        answer = await client.post(path, content=content, headers=headers)
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    expected = "nested deeper than 64" if depth <= MAX_CONTAINERS else "10000 is the limit"
    assert expected in answer.text


TEXT = "a" * 2 * LARGE
FAST = {"first_token": 0, "tokens_per_second": 10_000}
QUICK = {**FAST, "max_tokens": 1}
HEAVY = [
    ("streams.arguments", "decode_json_object"),
    ("streams.wires.openai.common", "decode_json_object"),
    ("streams.source", "encode_json"),
    ("streams.source", "encode_sorted"),
    ("streams.source", "hash_of_json"),
    ("streams.wire_host", "encode_sorted"),
    ("streams.wire_host", "hash_of_json"),
    ("streams.wires.openai.kept", "encode_json"),
    ("streams.wires.openai.response_routes", "payload"),
]


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/streams/tokens", {**QUICK, "prompt": TEXT}),
        ("/streams/tokens", {**QUICK, "reply": TEXT}),
        ("/v1/chat/completions", {**QUICK, "messages": [{"role": "user", "content": TEXT}]}),
        ("/v1/responses", {**FAST, "max_output_tokens": 1, "input": TEXT}),
        ("/v1/responses", {**FAST, "max_output_tokens": 1, "input": "Hi", "instructions": TEXT}),
    ],
)
async def test_each_step_of_work_on_a_large_body_has_a_turn_of_its_own(
    path: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, worked = 0, list[tuple[int, str]]()

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            result = function(*given, **options)
            if len(repr((given, result))) > LARGE:
                worked.append((turns, name))
            return result

        return call

    for module, name in HEAVY:
        owner = import_module(module)
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    counting = asyncio.create_task(count_turns())
    transport = httpx.ASGITransport(app=Streams([tokens], models={"mock": tokens}))
    async with httpx.AsyncClient(base_url="http://localhost", transport=transport) as client:
        given = given if path == "/streams/tokens" else {**given, "model": "mock", "stream": True}
        headers = {"Idempotency-Key": "k" * 16}
        answer = await client.post(path, json=given, headers=headers)
    counting.cancel()
    assert answer.status_code == 200, answer.text
    assert len(worked) > 2
    assert [turn for turn, _ in worked] == sorted({turn for turn, _ in worked}), worked


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_that_does_not_arrive_in_time_is_a_408(path: str) -> None:
    async with serving(app(body_timeout=0.05)) as url, posting(url, path, 2) as stream:
        await stream.until(lambda s: b"\r\n\r\n" in s.received, "the headers of the answer")
        await stream.to_the_end()
        assert stream.head.startswith("http/1.1 408 ")
        assert "connection: close" in stream.head
        answer = json.loads(stream.received.partition(b"\r\n\r\n")[2])
        detail = answer["error"]["message"] if path.startswith("/v1") else answer["detail"]
        assert detail == "the body has not arrived within 0.05 s; send all of it at once"
        assert opened == []


@pytest.mark.parametrize("path", BODIES)
async def test_a_body_that_arrives_in_pieces_and_in_time_is_taken(path: str) -> None:
    streams = app(body_timeout=60)
    async with serving(streams) as url, posting(url, path, 1) as stream:
        await until(lambda: len(streams.bodies) == 1, "the server waits for the body")
        stream.writer.write(BODIES[path][1:])
        await stream.until(lambda s: s.received.startswith(b"HTTP/1.1 200 "), "the answer")
        assert len(streams.bodies) == 0


async def test_health_counts_the_bodies_that_are_arriving() -> None:
    streams = app()
    async with serving(streams) as url, posting(url, "/topics/room", 1):
        await until(lambda: len(streams.bodies) == 1, "the server waits for the body")
        async with connection(url, "/health", headers="Connection: close\r\n") as health:
            await health.to_the_end()
        assert b'"bodies":1' in health.received


async def test_the_bodies_that_are_arriving_have_max_bytes_together() -> None:
    streams = app(max_bytes=10)
    async with serving(streams) as url:
        async with posting(url, "/streams/counted", 5), posting(url, "/streams/counted", 5):
            await until(lambda: streams.bodies.bytes == 10, "ten bytes have arrived")
            async with posting(url, "/topics/room", 1) as third:
                await third.until(lambda s: s.head.startswith("http/1.1 503 "), "the refusal")
                assert "retry-after: " in third.head
        await until(lambda: streams.bodies.bytes == 0, "the clients that left count no more")


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_leaves_amid_its_body_is_met_with_silence(
    path: str, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    streams = app()
    with caplog.at_level(logging.INFO):
        # Without a configuration, uvicorn's own records reach `caplog`.
        async with serving(streams, http=http, log_config=None) as url:
            async with posting(url, path, 2):
                await until(lambda: len(streams.bodies) == 1, "the server waits for the body")
            await until(lambda: len(streams.bodies) == 0, "the server has noticed")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert opened == []
    assert len(streams.log) == 0


variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


class Content:
    """What a request's context refers to."""


def test_the_timer_of_a_body_does_not_keep_the_context_of_its_request() -> None:
    async def received() -> Any:
        return {"type": "http.request", "body": b"1", "more_body": False}

    async def requesting(bodies: Bodies) -> "weakref.ref[Content]":
        content = Content()
        variable.set(content)
        scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
        assert await Request(scope, Body(bodies, scope, received)).body() == b"1"
        return weakref.ref(content)

    async def main() -> None:
        # The event loop forgets a cancelled timer at once only if it would be the next one.
        earlier = asyncio.get_running_loop().call_later(30, lambda: None)
        content = await asyncio.create_task(requesting(Bodies(100, 100, 60)))
        await asyncio.sleep(0)  # The event loop still has the last step of the task.
        gc.collect()
        earlier.cancel()
        assert content() is None

    asyncio.run(main())


async def test_a_408_has_no_connection_header_in_http_2() -> None:
    async def silent() -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "http_version": "2", "headers": []}
    with pytest.raises(BodyTooSlow) as raised:
        await Request(scope, Body(Bodies(100, 100, 0.01), scope, silent)).body()
    assert raised.value.headers == {}


def received_by(messages: Iterable[Message], bodies: Bodies) -> Body:
    """A body whose server gives these messages, one every 10 ms."""
    given = iter(messages)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return next(given)

    return Body(bodies, SCOPE, receive)


PIECE: Message = {"type": "http.request", "body": b"12345", "more_body": True}
LAST: Message = {**PIECE, "more_body": False}
SCOPE: Scope = {"type": "http", "headers": []}


async def test_a_body_has_max_body_bytes() -> None:
    pieces = [PIECE, LAST]
    body = received_by(pieces, Bodies(10, 100, 60))
    assert await Request(SCOPE, body).body() == b"1234512345"
    with pytest.raises(BodyTooLarge, match="more than 9 bytes"):
        await Request(SCOPE, received_by(pieces, Bodies(9, 100, 60))).body()


async def test_the_time_of_a_body_does_not_begin_again_with_each_piece() -> None:
    with pytest.raises(BodyTooSlow):
        await Request(SCOPE, received_by([PIECE] * 100, Bodies(1000, 1000, 0.3))).body()


async def test_a_client_may_leave_at_any_time_after_its_body() -> None:
    bodies = Bodies(10, 100, 60)
    body = received_by([LAST, {"type": "http.disconnect"}], bodies)
    assert await body() == LAST
    assert (len(bodies), bodies.bytes) == (0, 0)
    assert (await body())["type"] == "http.disconnect"
