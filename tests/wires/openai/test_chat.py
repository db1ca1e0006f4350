"""The OpenAI wire: the bytes of chat completions, and OpenAI's Python SDK as a client."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import openai
import pytest
from httpx_sse import aconnect_sse
from openai import AsyncOpenAI, OpenAI
from starlette.applications import Starlette
from starlette.routing import Mount

from streams import Event, Streams, source
from streams.event import EventId, encode_json
from streams.log import RunInfo
from streams.sources import tokens
from streams.wires.answer import Piece
from streams.wires.openai.chat import ChatAnswer, ChatWire, Completion, parse
from tests.support.mock import HELLO, PATH, QUICK, mock
from tests.support.sdk import sdk_of
from tests.support.servers import Connection, client_of, connection, serving, until
from tests.support.turns import at_once


async def text_of(stream: Any, pieces: list[str] | None = None) -> str:
    """The answer's text; `pieces` receives each piece of it, also before an error."""
    pieces = [] if pieces is None else pieces
    async for chunk in stream:
        pieces.append(chunk.choices[0].delta.content or "")
    return "".join(pieces)


@asynccontextmanager
async def posted(url: str, request: dict[str, Any]) -> AsyncIterator[Connection]:
    """Posts a request for a completion over a new socket and yields the connection."""
    body = json.dumps(request)
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with connection(url, PATH, method="POST", headers=headers) as stream:
        stream.writer.write(body.encode())
        yield stream


async def test_a_stream_consists_of_data_blocks_only() -> None:
    async with client_of(mock()) as client:
        request = {**HELLO, **QUICK, "reply": "Well, yes.", "stream": True}
        response = await client.post(PATH, json=request)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "connection" not in response.headers
    assert response.headers["cache-control"] == "no-store, no-transform"
    *blocks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks)
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    run = response.headers["x-request-id"]
    assert response.headers["content-location"] == f"/runs/{run}"
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{run}"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in chunks} == {"mock"}
    assert all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    assert [choice["delta"] for choice in choices[1:-1]] == [
        {"content": "Well"}, {"content": ","}, {"content": " yes"}, {"content": "."},
    ]  # fmt: skip
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]


async def test_a_heartbeat_is_one_comment_line() -> None:
    async with (
        serving(mock(heartbeat=0.01)) as url,
        posted(url, {**HELLO, **QUICK, "stall_after": 0, "stream": True}) as stream,
    ):
        await stream.until(
            lambda stream: b"\n\n:\n:\n:\n" in stream.body, "three heartbeats have arrived"
        )


async def test_an_answer_without_streaming_is_one_object() -> None:
    async with client_of(mock()) as client:
        response = await client.post(PATH, json={**HELLO, **QUICK, "reply": "Well, yes."})
    completion = response.json()
    run = response.headers["x-request-id"]
    assert completion.pop("created") > 1.7e9
    assert completion == {
        "id": f"chatcmpl-{run}",
        "object": "chat.completion",
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Well, yes.",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6},
    }


async def test_httpx_sse_parses_a_stream_with_heartbeats() -> None:
    async with (
        client_of(mock(heartbeat=0.01)) as client,
        aconnect_sse(
            client, "POST", PATH, json={**HELLO, "first_token": 0.05, "stream": True}
        ) as stream,
    ):
        events = [event async for event in stream.aiter_sse()]
    assert events[-1].data == "[DONE]"
    deltas = [event.json()["choices"][0]["delta"] for event in events[:-1]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text.startswith("You asked: Hello? Here is")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_cancels_the_run(stream: bool) -> None:
    streams = mock(heartbeat=3600)  # Only a disconnect detaches a reader.
    async with serving(streams) as url:
        async with posted(url, {**HELLO, "first_token": 60, "stream": stream}):
            await until(lambda: streams.log.readers, "the reader is attached")
        await until(lambda: not streams.runs.health()["running"], "the run has ended")
        assert not streams.log.readers


async def test_an_answer_whose_run_is_stopped_ends_with_an_error() -> None:
    async with (
        serving(mock()) as url,
        httpx.AsyncClient(base_url=url) as client,
        posted(url, {**HELLO, **QUICK, "stall_after": 2, "stream": True}) as stream,
    ):
        await stream.until(lambda stream: b'" asked"' in stream.body, "token 2 has arrived")
        await client.delete(f"/runs/{stream.run}")
        await stream.until(lambda stream: stream.terminated, "the stream has ended")
    assert json.loads(stream.body.split(b"data: ")[-1])["error"] == {
        "message": "the answer was cancelled: stopped",
        "type": "server_error",
        "param": None,
        "code": "cancelled",
    }


async def test_an_answer_ends_with_an_error_at_shutdown() -> None:
    async with serving(mock()) as url:
        posting = posted(url, {**HELLO, **QUICK, "stall_after": 1, "stream": True})
        stream = await posting.__aenter__()
        await stream.until(lambda stream: b'"You"' in stream.body, "token 1 has arrived")
    await stream.until(lambda stream: stream.terminated, "the stream has ended")
    error = json.loads(stream.body.split(b"data: ")[-1])["error"]
    assert error["code"] == "shutdown"
    await posting.__aexit__(None, None, None)


async def test_an_answer_whose_run_is_discarded_ends_with_an_error() -> None:
    streams = mock()
    async with sdk_of(streams) as sdk:
        asking = asyncio.create_task(
            sdk.chat.completions.create(**HELLO, extra_body={"first_token": 60})
        )
        await until(lambda: streams.log.readers, "the reader is attached")
        (run,) = streams.runs._producing
        await streams.log.discard(run.log.info.run)
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            await asking


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"messages": HELLO["messages"]}, 400, "model", "required field"),
        ({"model": "mock"}, 400, "messages", "required field"),
        ({**HELLO, "messages": []}, 400, "messages", "length >= 1"),
        ({**HELLO, "messages": "Hi"}, 400, "messages", "array"),
        ({**HELLO, "n": 2}, 400, "n", "enum"),
        ({**HELLO, "stop": list("abcde")}, 400, "stop", "length <= 4"),
        ({**HELLO, "max_tokens": 0}, 400, "max_tokens", ">= 1"),
        ({**HELLO, "stream_options": {"include_usage": 1}}, 400, "stream_options", "bool"),
        ({**HELLO, "jitter": 3}, 400, "jitter", "<= 1.0"),
        ({**HELLO, "fail_afte": 3}, 400, "fail_afte", "is not a parameter"),
        ({**HELLO, "tools": [{"type": "function"}]}, 400, "tools", "required field `function`"),
        ([], 400, None, "object"),
    ],
)
async def test_the_error_for_an_invalid_request_names_the_parameter(
    body: Any, status: int, param: str | None, says: str
) -> None:
    async with client_of(mock()) as client:
        response = await client.post(PATH, json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert error["code"] is None


async def test_invalid_json_large_bodies_and_cross_site_requests_are_refused() -> None:
    async with client_of(mock(max_body=1000)) as client:
        for content in (b"{", b"\xff", b"[" * 900):
            headers = {"Content-Type": "application/json"}
            response = await client.post(PATH, content=content, headers=headers)
            assert response.status_code == 400
        assert (await client.post(PATH, content=b"x" * 1001)).status_code == 413
        assert (await client.post(PATH, content=b"x")).status_code == 415
        elsewhere = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        response = await client.post(PATH, json=HELLO, headers=elsewhere)
        assert response.status_code == 403
        assert "evil.example" in response.json()["error"]["message"]


async def test_at_max_runs_a_request_gets_a_503_with_retry_after() -> None:
    async with serving(mock(max_runs=1)) as url, httpx.AsyncClient(base_url=url) as client:
        async with posted(url, {**HELLO, "first_token": 60, "stream": True}) as stream:
            await stream.until(
                lambda stream: b"assistant" in stream.body, "the first chunk has arrived"
            )
            response = await client.post(PATH, json=HELLO)
    assert response.status_code == 503
    assert 10 <= int(response.headers["retry-after"]) <= 20
    assert response.json()["error"]["type"] == "server_error"


async def test_parameters_without_effect_on_the_answers_form_are_accepted() -> None:
    request = {
        **HELLO,
        **QUICK,
        "temperature": 1,
        "top_p": 0.5,
        "user": "me",
        "tools": [],
        "logprobs": False,
        "n": None,
        "stop": None,
        "response_format": {"type": "text"},
    }
    async with client_of(mock()) as client:
        assert (await client.post(PATH, json=request)).status_code == 200


async def test_the_sdk_lists_models_and_asks_them_under_a_mount() -> None:
    app = Starlette(routes=[Mount("/llm", mock())])
    async with serving(app) as url:
        async with AsyncOpenAI(base_url=f"{url}/llm/v1", api_key="any") as sdk:
            assert [model.id for model in (await sdk.models.list()).data] == ["mock"]
            assert (await sdk.models.retrieve("mock")).owned_by == "streams"
            assert (await sdk.models.retrieve("org/other")).id == "org/other"
            raw = await sdk.chat.completions.with_raw_response.create(**HELLO, extra_body=QUICK)
        assert raw.headers["x-request-id"]


async def test_without_models_the_endpoints_do_not_exist() -> None:
    async with client_of(Streams([tokens])) as client:
        assert (await client.get("/v1/models")).status_code == 404


# OpenAI's Python SDK as a client.


async def test_the_sdk_streams_an_answer_with_its_usage() -> None:
    async with sdk_of(mock()) as sdk:
        stream = await sdk.chat.completions.create(
            **HELLO,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={**QUICK, "reply": "你好 👩‍👩‍👧‍👦\u2028!"},
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": 2,
        "completion_tokens": 5,
    }
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "你好 👩‍👩‍👧‍👦\u2028!"


async def test_the_streaming_helper_of_the_sdk_assembles_the_answer() -> None:
    async with sdk_of(mock()) as sdk:
        async with sdk.chat.completions.stream(
            **HELLO, extra_body={**QUICK, "reply": "Well, yes."}
        ) as stream:
            kinds = [event.type async for event in stream]
            completion = await stream.get_final_completion()
    assert kinds.count("content.delta") == 4
    assert kinds[-1] == "content.done"
    assert completion.choices[0].message.content == "Well, yes."
    assert completion.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_that_reaches_max_tokens_finishes_with_length(limit: str) -> None:
    request: dict[str, Any] = {**HELLO, limit: 3, "extra_body": QUICK}
    async with sdk_of(mock()) as sdk:
        completion = await sdk.chat.completions.create(**request)
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].message.content == "You asked:"
    assert completion.usage
    assert completion.usage.completion_tokens == 3


@pytest.mark.parametrize(("stop", "left"), [("rd thr", "one two thi"), (["x", "two"], "one ")])
async def test_a_stop_sequence_ends_the_answer_and_the_run(stop: Any, left: str) -> None:
    streams = mock()
    extra = {**QUICK, "reply": "one two third three", "stall_after": 9}
    async with sdk_of(streams) as sdk:
        stream = await sdk.chat.completions.create(
            **HELLO, stream=True, stop=stop, extra_body=extra
        )
        assert await text_of(stream) == left
        completion = await sdk.chat.completions.create(**HELLO, stop=stop, extra_body=extra)
        assert completion.choices[0].message.content == left
        assert completion.choices[0].finish_reason == "stop"
        await until(lambda: not streams.runs.health()["running"], "the runs have ended")


async def test_the_beginning_of_a_stop_sequence_is_sent_if_the_rest_does_not_follow() -> None:
    async with sdk_of(mock()) as sdk:
        completion = await sdk.chat.completions.create(
            **HELLO, stop=["threesome"], extra_body={**QUICK, "reply": "one three"}
        )
    assert completion.choices[0].message.content == "one three"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_the_sdk_raises_its_own_exception_for_each_status(
    status: int, error: type[openai.APIStatusError], stream: bool
) -> None:
    async with sdk_of(mock()) as sdk:
        with pytest.raises(error, match="as requested") as raised:
            await sdk.chat.completions.create(**HELLO, stream=stream, extra_body={"status": status})
    assert raised.value.status_code == status


async def test_the_sdk_raises_an_error_after_the_pieces_before_a_failure() -> None:
    async with sdk_of(mock()) as sdk:
        extra = {**QUICK, "fail_after": 2}
        stream = await sdk.chat.completions.create(**HELLO, stream=True, extra_body=extra)
        pieces: list[str] = []
        with pytest.raises(openai.APIError, match="the mock failed after 2 tokens") as raised:
            await text_of(stream, pieces)
        assert pieces == ["", "You", " asked"]
        assert raised.value.type == "server_error"
        with pytest.raises(openai.InternalServerError, match="the mock failed after 2 tokens"):
            await sdk.chat.completions.create(**HELLO, extra_body=extra)


@pytest.mark.parametrize("count", [0, 2])
async def test_the_sdk_raises_an_error_for_a_dropped_connection(count: int) -> None:
    streams = mock()
    async with sdk_of(streams) as sdk:
        extra = {**QUICK, "drop_after": count}
        stalling = {**extra, "stall_after": 5}
        stream = await sdk.chat.completions.create(**HELLO, stream=True, extra_body=stalling)
        # Which of the two the SDK raises in the middle of an answer depends on its version.
        with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
            await text_of(stream)
        with pytest.raises(openai.APIConnectionError):
            await sdk.chat.completions.create(**HELLO, extra_body=extra)
        await until(lambda: not streams.runs.health()["running"], "the runs have ended")


async def test_the_sdk_times_out_if_a_model_falls_silent() -> None:
    async with sdk_of(mock(), timeout=1) as sdk:
        extra = {**QUICK, "stall_after": 2}
        # On a busy machine the timeout may pass before the first chunk.
        with pytest.raises((openai.APITimeoutError, httpx.ReadTimeout)):
            await text_of(await sdk.chat.completions.create(**HELLO, stream=True, extra_body=extra))
        with pytest.raises(openai.APITimeoutError):
            await sdk.chat.completions.create(**HELLO, extra_body=extra)


async def test_the_sdk_retries_a_503_and_not_a_400() -> None:
    streams = mock()
    async with sdk_of(streams, max_retries=1) as sdk:
        for status, times in ((503, 2), (400, 1)):
            before = streams.log.events
            with pytest.raises(openai.APIStatusError):
                await sdk.chat.completions.create(**HELLO, extra_body={"status": status})
            assert streams.log.events - before == times, "a refused run has only a start"


async def test_the_synchronous_sdk_streams_and_raises_the_same_errors() -> None:
    def ask(url: str) -> None:
        with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk:
            whole = sdk.chat.completions.create(**HELLO, extra_body=QUICK)
            stream = sdk.chat.completions.create(**HELLO, stream=True, extra_body=QUICK)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text == whole.choices[0].message.content
            with pytest.raises(openai.RateLimitError):
                sdk.chat.completions.create(**HELLO, stream=True, extra_body={"status": 429})
            failing = sdk.chat.completions.create(
                **HELLO, stream=True, extra_body={**QUICK, "fail_after": 1}
            )
            with pytest.raises(openai.APIError, match="the mock failed"):
                list(failing)

    async with serving(mock()) as url:
        with anyio.fail_after(20):
            await anyio.to_thread.run_sync(ask, url)


# Custom sources as models.


async def test_any_source_of_text_can_be_a_model() -> None:
    @source
    async def plain(prompt: str, temperature: float = 1) -> AsyncIterator[Any]:
        yield "Prompt: "
        yield Event(prompt, event="debug")
        yield Event(text=prompt)
        yield Event(text="\nnot {JSON")
        yield 7
        yield {"message": {"content": None}, "done": False}
        yield {"message": "?"}
        yield {"progress": 0.5}

    async with sdk_of(Streams(models={"plain": plain})) as sdk:
        parts: Any = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]
        completion = await sdk.chat.completions.create(
            model="plain", messages=[{"role": "user", "content": parts}]
        )
        assert completion.choices[0].message.content == "Prompt: Who?\nnot {JSON7"
        assert completion.usage
        assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (1, 4)
        completion = await sdk.chat.completions.create(
            model="plain", messages=[{"role": "user", "content": "A b"}], max_tokens=2, stop="b?"
        )
        assert completion.choices[0].message.content == "Prompt: A b"
        assert completion.choices[0].finish_reason == "length"


async def test_joined_tokens_are_one_piece_and_counted_as_tokens() -> None:
    async with sdk_of(mock()) as sdk:
        single = await sdk.chat.completions.create(**HELLO, extra_body=QUICK)
        extra = {**QUICK, "every": 10}
        together = await sdk.chat.completions.create(**HELLO, extra_body=extra)
        pieces: list[str] = []
        await text_of(
            await sdk.chat.completions.create(**HELLO, stream=True, extra_body=extra), pieces
        )
    assert together.choices == single.choices
    assert together.usage == single.usage
    assert "".join(pieces) == single.choices[0].message.content
    assert len([piece for piece in pieces if piece]) == 2


async def test_the_message_of_an_exception_in_a_source_is_not_sent() -> None:
    @source
    async def secretive() -> AsyncIterator[str]:
        yield "a"
        raise RuntimeError("secret")

    async with sdk_of(Streams(models={"secretive": secretive})) as sdk:
        with pytest.raises(openai.InternalServerError) as raised:
            await sdk.chat.completions.create(**{**HELLO, "model": "secretive"})
    assert "secret " not in str(raised.value)
    assert raised.value.code == "RuntimeError"


async def test_a_page_of_an_allowed_origin_may_send_the_headers_of_the_sdk() -> None:
    preflight = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    async with client_of(mock(origins=["https://a.example"])) as client:
        response = await client.options(PATH, headers=preflight)
    assert response.status_code == 200
    assert "x-stainless-lang" in response.headers["access-control-allow-headers"]


async def test_a_completion_works_under_a_mount_whose_path_needs_percent_encoding() -> None:
    streams = mock()
    app = Starlette(routes=[Mount("/日本", streams)])
    async with client_of(app) as client:
        body = {**HELLO, **QUICK, "stream": True}
        response = await client.post("/日本/v1/chat/completions", json=body)
        assert response.text.endswith("data: [DONE]\n\n")
        run = response.headers["x-request-id"]
        assert response.headers["content-location"] == f"/%E6%97%A5%E6%9C%AC/runs/{run}"
        state = await client.get(
            response.headers["content-location"], headers={"Accept": "application/json"}
        )
    assert state.json()["status"] == "completed"


def test_a_whole_answer_holds_its_text_and_not_its_pieces() -> None:
    """Half a million pieces of a reply of 1 MB were 50 MB."""
    count, piece = 50_000, '\u2028"é'
    tracemalloc.start()
    try:
        completion = Completion()
        for _ in range(count):
            completion.add(Piece(piece))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(encode_json(completion.message()))["content"] == count * piece
    assert held < 2 * len(json.dumps(count * piece))


def test_a_gap_ends_an_answer_with_an_error() -> None:
    info = RunInfo(run="r", source="tokens", started=datetime.now(UTC))
    request, _ = at_once(parse(json.dumps(HELLO).encode()))
    wire = ChatWire(info, ChatAnswer(info, request, None))
    assert wire.gap(3, EventId("r", 3)) == b""
    assert wire.done
    assert b"no longer retained" in wire.finish()
    assert b"[DONE]" not in wire.finish()


async def test_a_completion_starts_a_run_of_its_own_that_no_other_worker_continues() -> None:
    """Even of a shared source: it ends with its client, and nobody else joins it."""

    @source(shared=True)
    async def feed(prompt: str = "", *, after: int = 0) -> AsyncIterator[str]:
        yield "same"

    streams = Streams(models={"feed": feed})
    async with client_of(streams) as client:
        body = {"model": "feed", "messages": [{"role": "user", "content": "Hi"}]}
        runs = set()
        for _ in range(2):
            response = await client.post(PATH, json=body)
            runs.add(response.headers["x-request-id"])
        assert len(runs) == 2
        for run in runs:
            info = (await streams.log.find(run)).info
            assert (info.key, info.arguments) == (None, None)


async def test_a_page_of_another_site_is_refused_before_its_body_is_read() -> None:
    async with client_of(mock()) as client:
        headers = {"Sec-Fetch-Site": "cross-site"}
        response = await client.post(PATH, content=b"no JSON", headers=headers)
        assert response.status_code == 403


@pytest.mark.parametrize(("length", "status"), [(256, 200), (257, 404)])
async def test_the_only_model_is_described_by_any_name_of_256_characters(
    length: int, status: int
) -> None:
    async with client_of(mock()) as client:
        assert (await client.get(f"/v1/models/{'m' * length}")).status_code == status
