"""What the source `chat` makes of the bytes of a model's server, with OpenAI's client as reference.

Each case is a response, byte for byte. Where the reference reads it, both read the same.
"""

import json
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest
from openai import AsyncOpenAI

from streams import StreamError
from streams.sources.chat import chat_with
from tests.support.raw_upstream import (
    HELLO,
    STOP,
    STREAM,
    data,
    delta,
    http,
    raw_upstream,
    unfinished,
)

DONE = "[DONE]"


class Case(NamedTuple):
    """A response, and the answer in it: its text and why it ends, or why it fails."""

    response: bytes
    text: str = "Hello"
    done_reason: str = "stop"
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[tuple[str, str, str], ...] = ()
    """Id, name and arguments of each; an id that the server does not give is empty."""
    counts: tuple[int | None, int | None] | None = None
    """Tokens of the prompt and of the answer."""
    failure: str | None = None
    reads: bool = False
    """Whether the reference reads the response to its end, too."""
    reference_reason: str | None = None
    """What the reference calls `done_reason`, if that is another name."""


def stream(*documents: Any, **expected: Any) -> Case:
    """A stream that ends with [DONE]."""
    return Case(http(data(*documents, DONE), STREAM), **expected)


def raw(body: str, **expected: Any) -> Case:
    """A stream with this body."""
    return Case(http(body.encode("utf-8", "surrogatepass"), STREAM), **expected)


def typed(*headers: str, **expected: Any) -> Case:
    """A stream with other headers."""
    return Case(http(data(HELLO, STOP, DONE), *headers), **expected)


def whole(document: Any, *headers: str, **expected: Any) -> Case:
    """A body that is one JSON document."""
    return Case(http(json.dumps(document).encode(), *(headers or [JSON])), **expected)


def calls(*fragments: Any, finish: str = "tool_calls", **expected: Any) -> Case:
    """A stream of chunks with these fragments of tool calls."""
    deltas = [delta(tool_calls=[fragment]) for fragment in fragments]
    return stream(
        *deltas, delta(finish), text="", **{"done_reason": finish, "reads": True, **expected}
    )


def function(name: str | None = None, arguments: Any = None, **members: Any) -> dict[str, Any]:
    given = {"name": name, "arguments": arguments}
    return {**members, "function": {k: v for k, v in given.items() if v is not None}}


def lines(text: str) -> str:
    """The chunks of a whole answer, and a text in between."""
    return f"data: {json.dumps(HELLO)}\n\n{text}data: {json.dumps(STOP)}\n\ndata: [DONE]\n\n"


def completion(finish: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


JSON = "Content-Type: application/json"
FAILED = "the model's server failed: "
INVALID = "the model's server sent an invalid chunk, "
NO_REASON = "the model's server ended its answer without a finish_reason"
WEATHER = ("call_1", "weather", '{"city": "Oslo"}')
USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
ERROR = {"message": "out of memory", "type": "server_error"}

UPSTREAMS: dict[str, Case] = {
    # The end of the stream
    "ends after [DONE]": stream(HELLO, STOP, reads=True),
    "keeps the connection open after [DONE]": Case(unfinished(data(HELLO, STOP, DONE)), reads=True),
    "sends spaces after [DONE]": raw(lines("").replace("[DONE]", "[DONE]  "), reads=True),
    "sends spaces before [DONE]": raw(lines("").replace("[DONE]", "  [DONE]")),
    "sends no [DONE]": Case(http(data(HELLO, STOP), STREAM), reads=True),
    "sends no blank line at the end": raw(lines("").removesuffix("data: [DONE]\n\n").rstrip()),
    "sends text after [DONE]": stream(HELLO, STOP, DONE, delta(content=" again"), reads=True),
    "sends the usage after the finish_reason": stream(
        HELLO, STOP, {"choices": [], "usage": USAGE}, counts=(9, 1)
    ),
    "breaks the connection after a complete answer": Case(
        unfinished(data(HELLO, STOP), STREAM, "Connection: close")
    ),
    # Events without a chunk
    "sends retry-only events": raw(lines("retry: 3000\n\n")),
    "sends retry-only events first": raw("retry: 3000\n\n" + lines("")),
    "sends id-only events": raw(lines("id: 7\n\n")),
    "sends ids": raw(lines("").replace("data: {", "id: 7\ndata: {"), reads=True),
    "sends comments": raw(lines(": OPENROUTER PROCESSING\n\n:\n"), reads=True),
    "sends an event with empty data": raw(lines("data:\n\n")),
    "sends an event with many empty lines of data": raw(lines("data:\ndata: \ndata\n\n")),
    "sends named events": raw(lines('event: ping\ndata: {"type": "ping"}\n\n')),
    "sends named events without data": raw(lines("event: ping\n\n")),
    "sends named events with text": raw(lines("event: heartbeat\ndata: 2027-01-01\n\n")),
    "sends named events with a message": raw(lines('event: info\ndata: {"message": "hi"}\n\n')),
    "sends named events with broken JSON": raw(lines("event: ping\ndata: {\n\n")),
    "names its chunks": raw(lines("").replace("data: {", "event: chunk\ndata: {"), reads=True),
    "calls its chunks messages": raw(lines("").replace("data: {", "event: message\ndata: {")),
    "sends a ping with text": raw(lines("data: ping\n\n")),
    "sends a ping with JSON": stream({}, HELLO, {"type": "ping"}, STOP, "null", "1"),
    "sends unknown fields": raw(lines("x-request-id: 7\n\n"), reads=True),
    # The form of the stream
    "ends its lines with CR LF": raw(lines("").replace("\n", "\r\n"), reads=True),
    "ends its lines with CR": raw(lines("").replace("\n", "\r")),
    "sends no space after the colon": raw(lines("").replace("data: ", "data:"), reads=True),
    "cuts a chunk into lines of data": raw(lines("").replace('"index"', '\ndata: "index"')),
    "begins with a byte order mark": raw("\ufeff" + lines("")),
    "sends a line separator in a text": stream(
        delta(content="a\u2028b\u2029c\x85d"), STOP, text="a\u2028b\u2029c\x85d"
    ),
    # The media type
    "sends its Content-Type in capitals": typed("Content-Type: TEXT/EVENT-STREAM", reads=True),
    "sends a charset": typed("Content-Type: text/event-stream;charset=utf-8", reads=True),
    "sends text/plain": typed("Content-Type: text/plain", reads=True),
    "sends no Content-Type": typed(reads=True),
    "sends JSON as the type of a stream": typed(JSON, reads=True),
    "sends another charset, but ASCII": typed(f"{STREAM}; charset=iso-8859-1", reads=True),
    "answers with 201": Case(http(data(HELLO, STOP), STREAM, status="201 Created"), reads=True),
    # What a chunk has
    "sends a choice without delta": stream({"choices": [{"index": 0}]}, HELLO, STOP),
    "sends a delta that is null": stream(
        HELLO, {"choices": [{"delta": None, "content_filter_offsets": {}}]}, STOP
    ),
    "sends a finish_reason without delta": stream(
        HELLO, {"choices": [{"index": 0, "finish_reason": "stop"}]}
    ),
    "sends no choices": stream(
        {"choices": None, "error": None}, {"choices": [], "prompt_filter_results": []}, HELLO, STOP
    ),
    "sends its usage with each chunk": stream(
        {**HELLO, "usage": {"prompt_tokens": 9, "completion_tokens": 1}},
        {**STOP, "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
        {"choices": [], "usage": None},
        counts=(9, 2),
    ),
    "sends its usage in the choice": stream(
        HELLO, {"choices": [{"delta": {}, "finish_reason": "stop", "usage": USAGE}]}, counts=(9, 1)
    ),
    "sends the numbers of its usage as text": stream(
        HELLO,
        STOP,
        {"choices": [], "usage": {"prompt_tokens": "9", "completion_tokens": 1.0}},
        counts=(9, 1),
    ),
    "sends no usage": stream(HELLO, STOP, counts=(None, 1)),
    "sends a whole message in its stream": stream(completion(content="Hello"), counts=(3, 4)),
    "sends NaN": raw(lines("").replace('"index"', '"score": NaN, "index"'), reads=True),
    "sends its content as a list of parts": stream(
        delta(content=[{"type": "text", "text": "Hel"}, {"type": "image_url"}, "l"]),
        delta(content=[{"type": "text", "text": "o"}]),
        STOP,
    ),
    "sends its content as one part": stream(delta(content={"type": "text", "text": "Hello"}), STOP),
    # Reasoning
    "sends reasoning_content": stream(
        delta(reasoning_content="Hm", content=None), HELLO, STOP, reasoning="Hm", reads=True
    ),
    "sends reasoning": stream(delta(reasoning="Hm"), HELLO, STOP, reasoning="Hm", reads=True),
    "sends reasoning under two names": stream(
        delta(reasoning="Hm", reasoning_content="Hm"), HELLO, STOP, reasoning="Hm", reads=True
    ),
    "sends thinking parts": stream(
        delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]),
        delta(content=[{"type": "thinking", "thinking": "m"}, {"type": "text", "text": "Hello"}]),
        STOP,
        reasoning="Hmm",
    ),
    "counts the tokens of its reasoning": stream(
        HELLO,
        STOP,
        {
            "choices": [],
            "usage": {**USAGE, "completion_tokens_details": {"reasoning_tokens": 5}},
        },
        counts=(9, 1),
    ),
    # Refusals and tool calls
    "sends a refusal": stream(
        delta(refusal="I "), delta(refusal="can't"), STOP, text="", refusal="I can't", reads=True
    ),
    "sends a tool call in fragments": calls(
        function("weather", "", index=0, id="call_1", type="function"),
        function(None, '{"city"', index=0),
        function(None, ': "Oslo"}', index=0),
        tool_calls=(WEATHER,),
    ),
    "repeats id and name of a tool call": calls(
        function("weather", '{"city"', index=0, id="call_1", type="function"),
        function("weather", ': "Oslo"}', index=0, id="call_1", type="function"),
        tool_calls=(WEATHER,),
    ),
    "sends empty ids after the first fragment": calls(
        function("weather", '{"city"', index=0, id="call_1"),
        function("", ': "Oslo"}', index=0, id=""),
        tool_calls=(WEATHER,),
    ),
    "sends a whole tool call without index": calls(
        function("weather", '{"city": "Oslo"}', id="call_1", type="function"),
        function("time", "{}", id="call_2", type="function"),
        tool_calls=(WEATHER, ("call_2", "time", "{}")),
    ),
    "sends fragments without index": calls(
        function("weather", '{"city"', id="call_1"),
        function(None, ': "Oslo"}'),
        function("time", "{", id="call_2"),
        function(None, "}", id="call_2"),
        tool_calls=(WEATHER, ("call_2", "time", "{}")),
    ),
    "gives each tool call the index 0": calls(
        function("weather", '{"city"', index=0, id="call_1"),
        function(None, ': "Oslo"}', index=0),
        function("time", "{}", index=0, id="call_2"),
        tool_calls=(WEATHER, ("call_2", "time", "{}")),
    ),
    "begins to number its tool calls with 1, and mixes them": calls(
        function("weather", '{"city"', index=1, id="call_1"),
        function("time", "{", index=2, id="call_2"),
        function(None, ': "Oslo"}', index=1),
        function(None, "}", index=2),
        tool_calls=(WEATHER, ("call_2", "time", "{}")),
    ),
    "gives two tool calls the same id": calls(
        function("time", "{}", index=0, id="call"),
        function("time", '{"zone": "UTC"}', index=1, id="call"),
        tool_calls=(("call", "time", "{}"), ("call", "time", '{"zone": "UTC"}')),
    ),
    "sends tool calls without id": calls(
        function("weather", '{"city": "Oslo"}'),
        function("time", "{}"),
        tool_calls=(("", *WEATHER[1:]), ("", "time", "{}")),
    ),
    "sends the arguments before the name": calls(
        function(None, '{"city"', index=0, id="call_1"),
        function("weather", ': "Oslo"}', index=0),
        tool_calls=(WEATHER,),
    ),
    "sends the arguments as an object": calls(
        function("weather", {"city": "Oslo"}, index=0, id="call_1"), tool_calls=(WEATHER,)
    ),
    "sends no arguments": calls(
        function("time", index=0, id="call_1"), tool_calls=(("call_1", "time", ""),)
    ),
    "sends tool_calls that are null": stream(delta(content="Hello", tool_calls=None), STOP),
    "sends text and tool calls": stream(
        delta(content="Hello", tool_calls=[function(*WEATHER[1:], index=0, id="call_1")]),
        delta("tool_calls"),
        done_reason="tool_calls",
        tool_calls=(WEATHER,),
        reads=True,
    ),
    "sends the deprecated function_call": stream(
        delta(function_call={"name": "weather", "arguments": '{"city"'}),
        delta(function_call={"arguments": ': "Oslo"}'}),
        delta("function_call"),
        text="",
        done_reason="tool_calls",
        reference_reason="function_call",
        tool_calls=(("", *WEATHER[1:]),),
        reads=True,
    ),
    # Characters
    "escapes a character in one chunk": stream(
        '{"choices":[{"delta":{"content":"\\ud83d\\ude00"}}]}', STOP, text="😀", reads=True
    ),
    "escapes a character in two chunks": stream(
        '{"choices":[{"delta":{"content":"a\\ud83d"}}]}',
        '{"choices":[{"delta":{"content":"\\ude00b"}}]}',
        STOP,
        text="a😀b",
        reads=True,
    ),
    "escapes a character of its reasoning around a text": stream(
        '{"choices":[{"delta":{"reasoning":"\\ud83d"}}]}',
        HELLO,
        '{"choices":[{"delta":{"reasoning":"\\ude00"}}]}',
        STOP,
        reasoning="😀",
        reads=True,
    ),
    "escapes a character of arguments in two chunks": stream(
        delta(tool_calls=[function("weather", '{"city": "', index=0, id="call_1")]),
        '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\ud83d"}}]}}]}',
        '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\ude00"}}]}}]}',
        delta(tool_calls=[function(None, '"}', index=0)]),
        STOP,
        text="",
        tool_calls=(("call_1", "weather", '{"city": "😀"}'),),
    ),
    "ends its arguments with half a character": stream(
        delta(tool_calls=[function("weather", "{", index=0, id="call_1")]),
        '{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\\ud83d"}}]}}]}',
        STOP,
        text="",
        tool_calls=(("call_1", "weather", "{�"),),
    ),
    "sends half a character": stream(
        '{"choices":[{"delta":{"content":"a\\ud83d"}}]}', delta(content="b"), STOP, text="a�b"
    ),
    "sends half a character at the end": stream(
        '{"choices":[{"delta":{"content":"a\\ud83d"}}]}', STOP, text="a�"
    ),
    "sends the second half of a character": stream(
        '{"choices":[{"delta":{"content":"\\ude00b"}}]}', STOP, text="�b"
    ),
    "sends a byte that is not UTF-8": Case(
        http(data(delta(content="a@b"), STOP).replace(b"@", b"\xff"), STREAM), text="a�b"
    ),
    # Why the model stops
    **{
        f"stops because of {reason!r}": stream(
            HELLO, delta(reason), done_reason=ours, reference_reason=reason, reads=True
        )
        for reason, ours in {
            "length": "length",
            "content_filter": "content_filter",
            "MAX_TOKENS": "length",
            "model_length": "length",
            "SAFETY": "content_filter",
            "tool_use": "tool_calls",
            "STOP": "stop",
            "eos": "stop",
            "end_turn": "stop",
            "whatever": "stop",
        }.items()
    },
    "sends empty finish_reasons": stream(
        delta("", content="Hel"), delta("null", content="lo"), STOP
    ),
    "stops for an unknown reason after a tool call": calls(
        function(*WEATHER[1:], index=0, id="call_1"),
        finish="calls",
        done_reason="tool_calls",
        reference_reason="calls",
        tool_calls=(WEATHER,),
    ),
    # Whole answers
    "answers with a whole completion": whole(
        completion(content="Hello", reasoning_content="Hm"), reasoning="Hm", counts=(3, 4)
    ),
    "answers with a whole completion as text/plain": whole(
        completion(content="Hello"), "Content-Type: text/plain", counts=(3, 4)
    ),
    "answers with a whole completion as an event stream": whole(
        completion(content="Hello"), STREAM, counts=(3, 4)
    ),
    "answers with a whole completion on many lines": Case(
        http(json.dumps(completion(content=5000 * "a"), indent=2).encode(), JSON), text=5000 * "a"
    ),
    "answers with a whole completion on many lines as an event stream": Case(
        http(json.dumps(completion(content=5000 * "a"), indent=2).encode(), STREAM),
        text=5000 * "a",
    ),
    "answers with whole tool calls": whole(
        completion(
            "tool_calls",
            content=None,
            tool_calls=[
                function(*WEATHER[1:], id="call_1", type="function"),
                function("time", "{}", id="call_2", type="function"),
            ],
        ),
        text="",
        done_reason="tool_calls",
        tool_calls=(WEATHER, ("call_2", "time", "{}")),
    ),
    # Failures in the stream
    "sends an error as an object": stream(
        HELLO, {"error": ERROR}, failure=f"{FAILED}out of memory"
    ),
    "sends an error as a text": stream(
        HELLO, {"error": "out of memory"}, failure=f"{FAILED}out of memory"
    ),
    "sends an error as a list": stream(
        HELLO, [{"error": {"code": 429, "message": "too many"}}], failure=f"{FAILED}too many"
    ),
    "sends an error that says nothing": stream(
        HELLO, {"error": {"code": 7}}, failure=f'{FAILED}{{"error": {{"code": 7}}}}'
    ),
    "sends an error with a chunk": stream(
        {**HELLO, "error": ERROR}, text="", failure=f"{FAILED}out of memory"
    ),
    "sends an event named error": raw(
        lines('event: error\ndata: {"message": "out of memory"}\n\n'),
        failure=f"{FAILED}out of memory",
    ),
    "sends an event named error with text": raw(
        lines("event: error\ndata: out of memory\n\n"), failure=f"{FAILED}out of memory"
    ),
    "sends an event named error with broken JSON": raw(
        lines("event: error\ndata: {out of\ndata: memory\n\n"), failure=FAILED + "{out of memory"
    ),
    "sends an error in a choice": stream(
        HELLO,
        {"choices": [{"delta": {}, "error": ERROR, "finish_reason": "error"}]},
        failure=f"{FAILED}out of memory",
    ),
    "sends a detail": stream(HELLO, {"detail": "out of memory"}, failure=f"{FAILED}out of memory"),
    "sends details": stream(
        HELLO,
        {"detail": [{"loc": ["body", "messages", 0], "msg": "Field required"}]},
        failure=f"{FAILED}body.messages.0: Field required",
    ),
    "sends the object error": stream(
        HELLO,
        {"object": "error", "message": "out of memory", "code": 500},
        failure=f"{FAILED}out of memory",
    ),
    "sends a message and no choices": stream(
        HELLO, {"code": 500, "message": "out of memory"}, failure=f"{FAILED}out of memory"
    ),
    "sends an error without an event": raw(
        lines('{"error": {"message": "out of memory"}}\n'), failure=f"{FAILED}out of memory"
    ),
    "keeps the connection open after an error without an event": Case(
        unfinished(data(HELLO) + json.dumps({"error": ERROR}).encode() + b"\n"),
        failure=f"{FAILED}out of memory",
    ),
    "ends with an error on many lines": Case(
        http(data(HELLO) + json.dumps({"error": ERROR}, indent=2).encode(), STREAM),
        failure=f"{FAILED}out of memory",
    ),
    "ends with a page": Case(
        http(data(HELLO) + b"<html>\n<title>502 Bad\nGateway</title></html>", STREAM),
        failure=f"{NO_REASON}; it said: 502 Bad Gateway",
    ),
    "ends with words": raw(
        lines("upstream connect error or disconnect/reset before headers\n").partition("data: {")[0]
        + f"data: {json.dumps(HELLO)}\n\nupstream connect error: reset\n",
        failure=f"{NO_REASON}; it said: upstream connect error: reset",
    ),
    "ends with words as data": stream(
        HELLO, "Internal Server Error", failure=f"{NO_REASON}; it said: Internal Server Error"
    ),
    "ends with the finish_reason error": stream(
        HELLO,
        delta("error"),
        failure="the model's server broke off its answer with the finish_reason 'error'",
    ),
    "aborts": stream(
        HELLO,
        delta("abort"),
        failure="the model's server broke off its answer with the finish_reason 'abort'",
    ),
    "sends [DONE] without a finish_reason": stream(HELLO, failure=NO_REASON),
    "ends without a finish_reason": Case(http(data(HELLO), STREAM), failure=NO_REASON),
    "ends without anything": Case(http(b"", STREAM), text="", failure=NO_REASON),
    "ends in the middle of a chunk": Case(
        http(data(HELLO) + data(STOP)[:30], STREAM), failure=INVALID
    ),
    "ends by closing the connection": Case(
        b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + data(HELLO, STOP, DONE), reads=True
    ),
    "closes the connection in the middle of its answer": Case(
        b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + data(HELLO), failure=NO_REASON
    ),
    "breaks the connection in the middle of its answer": Case(
        unfinished(data(HELLO), STREAM, "Connection: close"),
        failure="the connection to the model's server broke: RemoteProtocolError",
    ),
    # Chunks that have another form
    "sends a chunk that is not JSON": stream(HELLO, "{", failure=f"{INVALID}which is not JSON: {{"),
    "sends a chunk that is a list": stream(HELLO, "[]", failure=f"{INVALID}which is not an object"),
    "sends choices that are a number": stream(
        HELLO, {"choices": 5}, failure=f"{INVALID}whose choices are not a list"
    ),
    "sends a choice that is a text": stream(
        HELLO, {"choices": ["a"]}, failure=f"{INVALID}whose choice is not an object"
    ),
    "sends a delta that is a text": stream(
        HELLO, {"choices": [{"delta": "a"}]}, failure=f"{INVALID}whose delta is not an object"
    ),
    "sends a content that is a number": stream(
        HELLO, delta(content=5), failure=f"{INVALID}whose content is of the type int"
    ),
    "sends tool calls that are a text": stream(
        HELLO, delta(tool_calls="a"), failure=f"{INVALID}whose tool_calls are not a list"
    ),
    "sends a tool call without a function": stream(
        HELLO, delta(tool_calls=[{}]), failure=f"{INVALID}in which a tool call has no function"
    ),
    "sends a tool call without a name": stream(
        delta(tool_calls=[function(None, "{}", index=0)]),
        STOP,
        text="",
        failure="the model's server sent an invalid answer, in which a tool call has no name",
    ),
    "sends its usage as a text": stream(
        HELLO,
        STOP,
        {"choices": [], "usage": "9"},
        failure=f"{INVALID}whose usage is of the type str",
    ),
    "sends words as the numbers of its usage": stream(
        HELLO,
        STOP,
        {"choices": [], "usage": {"prompt_tokens": "many"}},
        failure=f"{INVALID}whose usage has a count that is not a number",
    ),
    "sends JSON that is 150,000 deep": stream(
        HELLO,
        150_000 * '{"a":' + "1" + 150_000 * "}",
        failure=f"{INVALID}which is nested too deeply",
    ),
    "sends a number of 5,000 digits": stream(
        HELLO, f'{{"created": {5000 * "9"}}}', failure=f"{INVALID}which is not JSON"
    ),
}


@pytest.mark.parametrize("name", UPSTREAMS)
async def test_chat_reads_an_upstream_that(name: str) -> None:
    case = UPSTREAMS[name]
    pieces, failure = await answer_of(case.response)
    read = [piece["message"] for piece in pieces]
    assert "".join(message["content"] for message in read) == case.text
    assert "".join(message.get("reasoning", "") for message in read) == case.reasoning
    assert "".join(message.get("refusal", "") for message in read) == case.refusal
    if case.failure is not None:
        assert failure is not None
        assert failure.startswith(case.failure)
        return
    assert failure is None
    assert calls_in(read) == case.tool_calls
    assert [piece["done"] for piece in pieces] == (len(pieces) - 1) * [False] + [True]
    assert pieces[-1]["done_reason"] == case.done_reason
    if case.counts:
        assert (pieces[-1]["prompt_eval_count"], pieces[-1]["eval_count"]) == case.counts


async def answer_of(response: bytes, every: float = 0) -> tuple[list[Any], str | None]:
    """What `chat` yields for a response, and why it fails."""
    pieces: list[Any] = []
    async with raw_upstream(response) as upstream:
        chat = chat_with(upstream.url, "m", timeout=20)
        assert chat.aclose
        try:
            with anyio.fail_after(20):
                async for piece in await chat(prompt="Hi", every=every):
                    pieces.append(json.loads(msgspec.json.encode(piece)))
        except StreamError as error:
            return pieces, str(error)
        finally:
            await chat.aclose()
    return pieces, None


def calls_in(messages: list[dict[str, Any]]) -> tuple[tuple[str, str, str], ...]:
    """The tool calls in the fragments, which have the form of the contract."""
    joined: list[list[str]] = []
    for fragment in (f for message in messages for f in message.get("tool_calls", ())):
        if fragment["index"] == len(joined):
            assert list(fragment) == ["index", "id", "type", "function"]
            assert fragment["type"] == "function"
            id_ = "" if len(fragment["id"]) == len("call_") + 24 else fragment["id"]
            joined.append([id_, fragment["function"]["name"], ""])
        else:
            assert list(fragment) == ["index", "function"]
            assert list(fragment["function"]) == ["arguments"]
        joined[fragment["index"]][2] += fragment["function"]["arguments"]
    return tuple((id_, name, arguments) for id_, name, arguments in joined)


async def test_the_tokens_of_reasoning_are_counted() -> None:
    pieces, _ = await answer_of(UPSTREAMS["counts the tokens of its reasoning"].response)
    assert pieces[-1]["reasoning_eval_count"] == 5


async def test_logprobs_are_passed_on_beside_the_message() -> None:
    tokens = '[{"token":"\\ud83d","logprob":-Infinity,"bytes":[240],"top_logprobs":[]}]'
    first = f'{{"choices":[{{"delta":{{"content":"a"}},"logprobs":{{"content":{tokens}}}}}]}}'
    alone = '{"choices":[{"delta":{},"logprobs":{"content":[{"token":"b","logprob":-0.5}]}}]}'
    none = '{"choices":[{"delta":{"content":"c"},"logprobs":null}]}'
    pieces, failure = await answer_of(http(data(first, alone, none, STOP, DONE), STREAM))
    assert failure is None
    assert [piece.get("logprobs") for piece in pieces] == [
        {"content": [{"token": "?", "logprob": None, "bytes": [240], "top_logprobs": []}]},
        {"content": [{"token": "b", "logprob": -0.5}]},
        None,
        None,
    ]
    assert [piece["message"]["content"] for piece in pieces] == ["a", "", "c", ""]


async def test_tokens_are_joined_and_tool_calls_are_kept() -> None:
    fragments = [delta(tool_calls=[function(*WEATHER[1:], index=0, id="call_1")])]
    thoughts = [delta(reasoning="H"), delta(reasoning="m"), delta(reasoning="m")]
    texts = [delta(content="Hel"), delta(content="lo")]
    response = http(data(*thoughts, *texts, *fragments, delta("tool_calls"), DONE), STREAM)
    pieces, failure = await answer_of(response, every=10)
    assert failure is None
    assert len(pieces) < 8, "there are fewer pieces than chunks"
    messages = [piece["message"] for piece in pieces]
    assert "".join(message.get("reasoning", "") for message in messages) == "Hmm"
    assert "".join(message["content"] for message in messages) == "Hello"
    assert calls_in(messages) == (WEATHER,)


@pytest.mark.parametrize("name", [name for name, case in UPSTREAMS.items() if case.reads])
async def test_the_reference_reads_the_same_from_an_upstream_that(name: str) -> None:
    case = UPSTREAMS[name]
    text, reason = "", None
    async with (
        raw_upstream(case.response) as upstream,
        AsyncOpenAI(base_url=upstream.url, api_key="any", max_retries=0, timeout=20) as reference,
    ):
        answer = await reference.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for chunk in answer:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert (text, reason) == (case.text, case.reference_reason or case.done_reason)
