"""Refusals of a model's server: the status, the text and the wait of each are passed on."""

import json
import logging
import time
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest

from streams import StreamError, Streams
from streams.sources.chat import chat_with
from streams.sources.chat.reasons import LONGEST_WAIT, MAX_REASON
from tests.sources.test_chat_requests import ask
from tests.support.raw_upstream import HELLO, STREAM, data, delta, http, raw_upstream
from tests.support.servers import client_of, every_event

KEY = "sk-do-not-tell"
HEADER_KEY = "header-key-7"
JSON = "Content-Type: application/json"
HTML = "Content-Type: text/html"
PAGE = b"""<!doctype html><html><head><style>p { color: red }</style>
<title>host | 522: Connection timed&nbsp;out</title></head><body><p>Ray ID: 7</p></body></html>"""


async def refused(response: bytes, key: str = KEY) -> StreamError:
    """The error of `chat` when the model's server responds with this."""
    async with raw_upstream(response) as upstream:
        headers = {"X-Token": f"Token {HEADER_KEY}"}
        chat = chat_with(upstream.url, "m", api_key=key, extra_headers=headers)
        with pytest.raises(StreamError) as raised:
            await ask(chat)
    return raised.value


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 499, 500, 520, 522, 524, 529, 599])
async def test_a_refusal_is_passed_on_with_its_status(status: int) -> None:
    async with raw_upstream(http(PAGE, HTML, status=f"{status} No")) as upstream:
        async with client_of(Streams([chat_with(upstream.url, "m")]), lifespan="on") as client:
            response = await client.get("/streams/chat?prompt=Hi")
            assert response.status_code == status
            says = "" if status == 401 else ": host | 522: Connection timed out"
            detail = f"the model's server refuses with status {status}{says}"
            assert response.json()["detail"] == detail
            assert (await client.get("/health")).json()["runs"] == 0


@pytest.mark.parametrize(
    "status", ["204 No Content", "205 Reset Content", "304 Not Modified", "307 Redirect", "600 No"]
)
async def test_a_status_that_is_neither_an_answer_nor_an_error_is_a_502(status: str) -> None:
    error = await refused(f"HTTP/1.1 {status}\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".encode())
    assert (str(error), error.status) == (
        f"the model's server refuses with status {status[:3]}",
        502,
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"error":{"message":"too long"}}', "too long"),
        (b'{"error":"too long"}', "too long"),
        (b'{"detail":"too long"}', "too long"),
        (b'{"message":"too long"}', "too long"),
        (b'{"error":"invalid_request","message":"too long"}', "too long"),
        (b'{"error":true,"msg":"too long"}', "too long"),
        (b'{"errors":["too long","too wide"]}', "too long; too wide"),
        (b'{"error":{"error":{"message":"too long"}}}', "too long"),
        (b'[{"error":{"code":400,"message":"too long"}}]', "too long"),
        (b'{"detail":[{"loc":["body","n"],"msg":"too long"}]}', "body.n: too long"),
        (b'{"title":"Bad","detail":"too long","status":400}', "too long"),
        (b'"too long"', "too long"),
        (b'{"error":{"code":7}}', '{"error": {"code": 7}}'),
        (b"{", "{"),
        (b"{}", ""),
        (b"null", ""),
        (b"", ""),
        (b" \n\xff\xfe", ""),
        (b"too\nlong", "too long"),
        (b"<html><h1>too &lt; long</h1></html>", "too < long"),
        (b'<title lang="en">too\nlong</title>', "too long"),
        (b"<html>", ""),
        (b'data: {"error":{"message":"too long"}}\n\n', "too long"),
        (b"event: error\ndata: too long\n\n", "too long"),
        (b"\xef\xbb\xbf" + b'{"error":"too long"}', "too long"),
        (b'{"error":"\\u001b[31mred\\u0007\\n\\u202etxt"}', r"\x1b[31mred\x07 \u202etxt"),
        (b'{"error":"\\ud83d"}', r"\ud83d"),
        (b'{"error":"' + 200 * b"a" + b'"}', 200 * "a"),
        (b'{"error":"' + 201 * b"a" + b'"}', 200 * "a" + "…"),
        (10_000 * b'{"error":', 22 * '{"error":' + '{"…'),
        (60_000 * b"<", MAX_REASON * "<" + "…"),
        (30_000 * b"<title", 33 * "<title" + "<t…"),
    ],
)
async def test_the_text_of_a_refusal_is_passed_on(body: bytes, says: str) -> None:
    error = await refused(http(body, status="400 Bad Request"))
    assert str(error).removeprefix("the model's server refuses with status 400") == (
        f": {says}" if says else ""
    )


async def test_the_text_of_a_refusal_of_the_key_is_not_passed_on() -> None:
    """It often has a part of the key."""
    for status in ("401 Unauthorized", "403 Forbidden"):
        error = await refused(http(b'{"error":"sk-do***ll is wrong"}', status=status))
        assert str(error) == f"the model's server refuses with status {status[:3]}"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7", 7),
        ("Retry-After: 0", 0),
        ("Retry-After: 1.2", 2),
        ("retry-after-ms: 1500", 2),
        ("retry-after-ms: 20\r\nRetry-After: 7", 1),
        ("retry-after-ms: soon\r\nRetry-After: 7", 7),
        (f"Retry-After: {LONGEST_WAIT}", LONGEST_WAIT),
        (f"Retry-After: {LONGEST_WAIT + 1}", LONGEST_WAIT),
        (f"Retry-After: {5000 * '9'}", LONGEST_WAIT),
        ("Retry-After: Fri, 01 Jan 2100 00:00:00 GMT", LONGEST_WAIT),
        ("Retry-After: Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Retry-After: -1", None),
        ("Retry-After: ٣", None),
        ("Retry-After: soon", None),
        ("Retry-After:", None),
        ("X-Other: 7", None),
    ],
)
async def test_the_wait_of_a_refusal_is_passed_on(header: str, seconds: int | None) -> None:
    response = http(b"", header, status="429 Too Many Requests")
    error = await refused(response)
    assert error.retry_after == seconds


async def test_a_wait_until_a_date_is_passed_on_in_seconds() -> None:
    date = formatdate(time.time() + 3600, usegmt=True)
    error = await refused(http(b"", f"Retry-After: {date}", status="503 Unavailable"))
    assert error.retry_after is not None
    assert 3000 < error.retry_after <= 3600


@pytest.mark.parametrize(
    ("document", "status", "says"),
    [
        ({"error": {"message": "out of memory"}}, 502, "out of memory"),
        ({"error": {"message": "slow down", "code": 429}}, 429, "slow down"),
        ({"error": {"message": "no", "code": "invalid"}}, 502, "no"),
        ({"error": "no", "status": 404}, 404, "no"),
        ({"message": "no", "status_code": 503}, 503, "no"),
        ([{"error": {"message": "no", "code": 200}}], 502, "no"),
    ],
)
@pytest.mark.parametrize("header", [JSON, "Content-Type: text/plain", "X-None: 0"])
async def test_an_error_with_status_200_is_an_error(
    document: Any, status: int, says: str, header: str
) -> None:
    error = await refused(http(json.dumps(document, indent=2).encode(), header))
    assert (str(error), error.status) == (f"the model's server failed: {says}", status)


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (http(PAGE, HTML), "did not send an event stream; it said: host | 522: Connection timed"),
        (http(b"{}", JSON), "ended its answer without a finish_reason"),
        (http(b'{"id": 1', JSON), "sent an invalid chunk, which is not JSON"),
        (http(b"", JSON), "ended its answer without a finish_reason"),
        (http(b"Not today", "Content-Type: text/plain"), "it said: Not today"),
    ],
)
async def test_what_is_neither_a_stream_nor_a_completion_is_a_502(
    response: bytes, says: str
) -> None:
    error = await refused(response)
    assert error.status == 502
    assert says in str(error)


# ---- what must not be told


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "401 No", "500 Error"])
@pytest.mark.parametrize("key", [KEY, "sk/do+not tell"])
async def test_the_keys_are_in_no_log_and_in_no_error(
    status: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    message = f"{key}, {quote(key, '')} and {HEADER_KEY} are not mine"
    for answer in (
        http(json.dumps({"error": message}).encode(), JSON, status=status),
        http(data(HELLO, {"error": {"message": message}}), STREAM),
        http(data(HELLO) + b"event: error\ndata: " + message.encode() + b"\n\n", STREAM),
        http(data(HELLO, delta(f"stop {message}", content=5)), STREAM),
        http(data(HELLO, message), STREAM),
    ):
        async with raw_upstream(answer) as upstream:
            headers = {"X-Token": f"Token {HEADER_KEY}"}
            chat = chat_with(upstream.url, "m", api_key=key, extra_headers=headers)
            streams = Streams([chat], models={"m": chat})
            async with client_of(streams, lifespan="on") as client:
                responses = [
                    await client.get("/streams/chat?prompt=Hi"),
                    await client.post(
                        "/v1/chat/completions",
                        json={"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
                    ),
                    await client.get("/streams"),
                ]
        told = caplog.text + "".join(f"{r.text} {r.headers}" for r in responses)
        assert all(secret not in told for secret in (key, quote(key, ""), HEADER_KEY))
        if status != "401 No":
            assert "not mine" in told


async def test_control_characters_of_a_server_do_not_reach_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "a\x1b[2J\r\nERROR forged\x00\u2028" + 1000 * "b"
    for answer in (
        http(json.dumps({"error": text}).encode(), status="500 Error"),
        http(text.encode(), status="500 Error"),
        http(data(HELLO, {"error": text}), STREAM),
        http(data(HELLO, delta(text)), STREAM, "Content-Length-Of: x"),
        http(data(HELLO, '{"' + text.replace("\n", "")), STREAM),
        http(data(HELLO), f"{STREAM}; charset=\x7f" + 300 * "x"),
    ):
        async with raw_upstream(answer) as upstream:
            async with client_of(Streams([chat_with(upstream.url, "m")]), lifespan="on") as client:
                await client.get("/streams/chat?prompt=Hi")
    logged = [record.getMessage() for record in caplog.records if record.name == "streams"]
    assert len(logged) >= 4
    assert all(message.isprintable() and len(message) < 400 for message in logged)


async def test_a_failure_after_the_first_piece_is_the_end_of_the_run() -> None:
    answer = http(data(HELLO, {"error": {"message": "out of memory"}}), STREAM)
    async with raw_upstream(answer) as upstream:
        async with client_of(Streams([chat_with(upstream.url, "m")]), lifespan="on") as client:
            events = await every_event(client, "/streams/chat?prompt=Hi")
    assert events[1].json()["message"]["content"] == "Hello"
    error = {"type": "StreamError", "message": "the model's server failed: out of memory"}
    assert events[-1].json() == {"status": "failed", "error": error}
