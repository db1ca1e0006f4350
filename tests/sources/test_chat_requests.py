"""What the source `chat` asks the model's server for, and what a client may set in it."""

from typing import Any

import httpx
import pytest

from streams import StreamError, Streams, source
from streams.errors import InvalidParameters
from streams.sources.chat import chat_with
from tests.support.raw_upstream import (
    HELLO,
    STOP,
    STREAM,
    Answer,
    RawUpstream,
    data,
    http,
    raw_upstream,
)
from tests.support.servers import client_of, every_event

HI = [{"role": "user", "content": "Hi"}]
ANSWER = http(data(HELLO, STOP, "[DONE]"), STREAM)
SET = {
    "model": "m",
    "messages": HI,
    "stream": True,
    "stream_options": {"include_usage": True},
}
"""What the source sets itself."""

FIELDS: dict[str, Any] = {
    "temperature": 0,
    "max_tokens": 7,
    "seed": -1,
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "top_p": 0.5,
    "reasoning_effort": "low",
    "frequency_penalty": -2,
    "presence_penalty": 2,
    "metadata": {"chat": "7"},
    "user": "ann",
}
EXTRA = {"stop": ["\n"], "logprobs": True, "top_k": 4, "max_completion_tokens": 9}


async def asked(answers: list[Answer], *, options: Any = None, **arguments: Any) -> RawUpstream:
    """A server after `chat` has asked it once, with these arguments, and its answer was read."""
    async with raw_upstream(*answers) as upstream:
        await ask(chat_with(upstream.url, "m", **(options or {})), **arguments)
    return upstream


async def ask(chat: Any, *, close: bool = True, **arguments: Any) -> str:
    """The text of the answer of `chat`, which is closed then."""
    try:
        events = await chat(**({"prompt": "Hi"} | arguments))
        return "".join([event["message"]["content"] async for event in events])
    finally:
        if close:
            await chat.aclose()


async def test_every_parameter_is_a_field_of_the_request() -> None:
    upstream = await asked([ANSWER], **FIELDS, extra=EXTRA)
    assert upstream.asked[0].body == {**SET, **FIELDS, **EXTRA}


async def test_only_what_is_given_is_in_the_request() -> None:
    upstream = await asked([ANSWER], extra={"n": 1, "stop": None})
    assert upstream.asked[0].body == SET


async def test_a_conversation_takes_the_place_of_a_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    upstream = await asked([ANSWER], messages=messages)
    assert upstream.asked[0].body == {**SET, "messages": messages}


async def test_the_parameters_can_be_posted() -> None:
    async with raw_upstream(ANSWER) as upstream:
        streams = Streams([chat_with(upstream.url, "m")])
        async with client_of(streams, lifespan="on") as client:
            arguments = {"prompt": "Hi", **FIELDS, "extra": EXTRA}
            events = await every_event(client, "/streams/chat", method="POST", json=arguments)
    assert events[-1].json() == {"status": "completed"}
    assert upstream.asked[0].body == {**SET, **FIELDS, **EXTRA}


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("top_p", [0, 1], [-0.1, 1.1]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("temperature", [0, 2], [-0.1, 2.1]),
        ("max_tokens", [1], [0]),
        ("user", [1000 * "u"], [1001 * "u"]),
        ("reasoning_effort", ["xhigh"], [1001 * "x"]),
        ("tool_choice", ["auto"], [5]),
    ],
)
async def test_a_parameter_out_of_its_range_is_refused(
    name: str, inside: list[Any], outside: list[Any]
) -> None:
    async with raw_upstream(http(b"", status="418 Teapot")) as upstream:
        async with client_of(Streams([chat_with(upstream.url, "m")]), lifespan="on") as client:
            for values, status in ((inside, 418), (outside, 422)):
                for value in values:
                    body = {"prompt": "Hi", name: value}
                    response = await client.post("/streams/chat", json=body)
                    assert response.status_code == status, value


@pytest.mark.parametrize(
    ("options", "arguments", "names"),
    [
        ({}, {"extra": {"model": "gpt-9"}}, ["model"]),
        ({}, {"extra": {"stream": False, "n": 2}}, ["stream", "n"]),
        ({}, {"extra": {"stream_options": None}}, ["stream_options"]),
        ({}, {"extra": {"messages": []}}, ["messages"]),
        ({}, {"extra": {"temperature": 9}}, ["temperature"]),
        ({}, {"extra": {"prompt": "x"}}, ["prompt"]),
        ({"extra_body": {"top_k": 1}}, {"extra": {"top_k": 2}}, ["top_k"]),
        ({"extra_body": {"temperature": 1}}, {"temperature": 2}, ["temperature"]),
        ({"extra_body": {"temperature": None}}, {"temperature": 2}, ["temperature"]),
        ({"extra_body": {"max_completion_tokens": 9}}, {"max_tokens": 99}, ["max_tokens"]),
    ],
)
async def test_a_client_cannot_set_what_the_server_and_its_operator_set(
    options: dict[str, Any], arguments: dict[str, Any], names: list[str]
) -> None:
    chat = chat_with("http://127.0.0.1:9/v1", "m", **options)
    with pytest.raises(InvalidParameters) as raised:
        await ask(chat, **arguments)
    assert [error["name"] for error in raised.value.members["errors"]] == names
    assert all(name in str(raised.value) for name in names)


async def test_a_field_that_a_client_cannot_set_is_a_422_that_names_it() -> None:
    chat = chat_with("http://127.0.0.1:9/v1", "m")
    async with client_of(Streams([chat])) as client:
        body = {"prompt": "Hi", "extra": {"model": "gpt-9", 5000 * "x": 1}}
        response = await client.post("/streams/chat", json=body)
    assert response.status_code == 422
    assert response.json()["detail"] == "model is set by this server; leave it out"


async def test_the_operator_can_fix_fields_and_headers() -> None:
    options = {
        "extra_body": {"top_k": 1, "stream_options": None, "service_tier": "flex"},
        "extra_headers": {"api-key": "secret", "OpenAI-Project": "p"},
    }
    upstream = await asked([ANSWER], options=options)
    body = {name: value for name, value in SET.items() if name != "stream_options"}
    assert upstream.asked[0].body == {**body, "top_k": 1, "service_tier": "flex"}
    headers = upstream.asked[0].headers
    assert headers["api-key"] == "secret"
    assert headers["openai-project"] == "p"
    assert headers["accept"] == "text/event-stream"
    assert headers["accept-encoding"] == "identity"
    assert "authorization" not in headers


@pytest.mark.parametrize("name", ["messages", "model", "n", "stream"])
def test_the_operator_cannot_fix_what_the_source_sets(name: str) -> None:
    with pytest.raises(ValueError, match=f"extra_body cannot set {name}"):
        chat_with("http://host/v1", "m", extra_body={name: 1})


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"Content-Type": "text/plain"}, "cannot set 'Content-Type'"),
        ({"Idempotency-Key": "k"}, "cannot set 'Idempotency-Key'"),
        ({"Authorization": "Bearer k"}, "cannot set 'Authorization'"),
        ({"X Y": "k"}, "'X Y' is not the name of a header"),
        ({"": "k"}, "'' is not the name of a header"),
        ({"X-Key": "k\r\nX-Other: v"}, "'X-Key' is not printable ASCII"),
        ({"X-Key": "schlüssel"}, "'X-Key' is not printable ASCII"),
        ({"X-Key": 5}, "'X-Key' is not printable ASCII"),
    ],
)
def test_an_invalid_header_is_named(headers: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        chat_with("http://host/v1", "m", api_key="sk", extra_headers=headers)
    assert "schlüssel" not in str(raised.value)


def test_a_limit_below_one_byte_is_invalid() -> None:
    with pytest.raises(ValueError, match="max_line is 0; give a number of bytes"):
        chat_with("http://host/v1", "m", max_line=0)


@pytest.mark.parametrize(("key", "sent"), [("sk-1", "Bearer sk-1"), ("", None)])
async def test_the_key_is_in_the_authorization(key: str, sent: str | None) -> None:
    upstream = await asked([ANSWER], options={"api_key": key})
    assert upstream.asked[0].headers.get("authorization") == sent


async def test_the_query_of_the_url_is_kept() -> None:
    async with raw_upstream(ANSWER) as upstream:
        chat = chat_with(f"{upstream.url}/?api-version=7", "m")
        assert await ask(chat) == "Hello"
    assert upstream.targets == ["/v1/chat/completions?api-version=7"]


# ---- fields that some servers refuse

REFUSES_OPTIONS = http(
    b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs"}]}',
    "Content-Type: application/json",
    status="422 Unprocessable Content",
)
WANTS_NEW_NAME = http(
    b'{"error":{"message":"Unsupported parameter: \'max_tokens\' is not supported with this model. '
    b'Use \'max_completion_tokens\' instead.","param":"max_tokens"}}',
    "Content-Type: application/json",
    status="400 Bad Request",
)


@pytest.mark.parametrize(
    ("refusal", "left_out", "put_in"),
    [
        (REFUSES_OPTIONS, "stream_options", {}),
        (WANTS_NEW_NAME, "max_tokens", {"max_completion_tokens": 7}),
    ],
)
async def test_a_field_that_the_server_refuses_is_left_out_or_renamed_and_remembered(
    refusal: bytes, left_out: str, put_in: dict[str, Any]
) -> None:
    async with raw_upstream(refusal, ANSWER) as upstream:
        chat = chat_with(upstream.url, "m")
        assert await ask(chat, close=False, max_tokens=7) == "Hello"
        assert await ask(chat, max_tokens=7) == "Hello"
    first, *others = [asked.body for asked in upstream.asked]
    rest = {name: value for name, value in first.items() if name != left_out}
    assert others == [{**rest, **put_in}, {**rest, **put_in}]
    keys = [asked.headers["idempotency-key"] for asked in upstream.asked]
    assert len(set(keys)) == 3, "a server that knows a key answers as before"


async def test_both_fields_can_be_refused_one_after_the_other() -> None:
    async with raw_upstream(REFUSES_OPTIONS, WANTS_NEW_NAME, ANSWER) as upstream:
        assert await ask(chat_with(upstream.url, "m"), max_tokens=7) == "Hello"
    body = upstream.asked[2].body
    assert "stream_options" not in body
    assert body["max_completion_tokens"] == 7


async def test_a_field_is_left_out_once_and_the_last_refusal_counts() -> None:
    again = http(b'{"error":"stream_options and max_tokens"}', status="400 Bad Request")
    async with raw_upstream(REFUSES_OPTIONS, again) as upstream:
        chat = chat_with(upstream.url, "m")
        with pytest.raises(StreamError, match="status 400: stream_options and max_tokens"):
            await ask(chat, close=False)
        assert len(upstream.asked) == 2
        with pytest.raises(StreamError):
            await ask(chat)
        assert "stream_options" in upstream.asked[2].body, "what did not help is not remembered"


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "500 Error"])
async def test_another_refusal_that_names_a_field_is_passed_on(status: str) -> None:
    async with raw_upstream(http(b"stream_options", status=status), ANSWER) as upstream:
        with pytest.raises(StreamError):
            await ask(chat_with(upstream.url, "m"))
        assert len(upstream.asked) == 1


# ---- the idempotency key


async def test_the_key_of_a_request_is_the_id_of_its_run() -> None:
    async with raw_upstream(ANSWER) as upstream:
        streams = Streams([chat_with(upstream.url, "m")])
        async with client_of(streams, lifespan="on") as client:
            events = await every_event(client, "/streams/chat?prompt=Hi")
    assert upstream.asked[0].headers["idempotency-key"] == events[0].json()["run"]


async def test_a_source_that_asks_twice_uses_two_keys() -> None:
    async with raw_upstream(ANSWER) as upstream:
        chat = chat_with(upstream.url, "m")

        @source
        async def agent() -> Any:
            for _ in range(2):
                async for event in await chat(prompt="Hi"):
                    yield event

        async with client_of(Streams([agent, chat]), lifespan="on") as client:
            events = await every_event(client, "/streams/agent")
    run = events[0].json()["run"]
    keys = [asked.headers["idempotency-key"] for asked in upstream.asked]
    assert len(set(keys)) == 2
    assert all(key.startswith(f"{run}-") for key in keys)


async def test_openais_wire_passes_the_fields_on() -> None:
    """A request to the model of OpenAI's endpoint reaches the model's server."""
    async with raw_upstream(ANSWER) as upstream:
        chat = chat_with(upstream.url, "m")
        async with client_of(Streams(models={"m": chat}), lifespan="on") as client:
            body = {"model": "m", "messages": HI, "tools": FIELDS["tools"], "top_p": 0.5}
            response: httpx.Response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert upstream.asked[0].body == {**SET, "tools": FIELDS["tools"], "top_p": 0.5}
