"""The AI SDK's UI message stream: what it says, who gets it, and how a client resumes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from streams import Event, StreamError, Streams, Wire, source
from streams.event import (
    COMPLETED,
    SHUTDOWN,
    End,
    EventId,
    LoggedEvent,
    frame,
    payload,
)
from streams.log import RunInfo
from streams.sources import tokens
from streams.wires.ui_stream import UIStream, chat_messages
from tests.support.mock import QUICK
from tests.support.servers import Connection, client_of, connection, serving, until
from tests.support.ui_messages import UIMessage, chunks_of, ui_message

INFO = RunInfo(run="A" * 22, source="s", started=datetime.now(UTC))
UI = "text/event-stream"


def said(**members: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **members}, "done": False}


def called(arguments: str = "", index: int = 0, **begin: Any) -> dict[str, Any]:
    function = {"name": begin["name"]} if begin else {}
    call = {"index": index, **({"id": begin["id"], "type": "function"} if begin else {})}
    return said(tool_calls=[{**call, "function": {**function, "arguments": arguments}}])


def gave(id_: str, content: Any) -> dict[str, Any]:
    return {"message": {"role": "tool", "tool_call_id": id_, "content": content}}


def ended(reason: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": reason}


def body_of(*values: Any, end: End | None = COMPLETED, wire: Wire | None = None) -> bytes:
    """What a wire makes of a run that yields these values."""
    wire = wire or UIStream(INFO)
    payloads = [(b"start", INFO.start), *map(payload, values)]
    if end is not None:
        payloads.append((b"end", end.encode()))
    frames = [frame(b"A" * 22, number, *each) for number, each in enumerate(payloads)]
    return wire.begin() + wire.start(b"".join(frames), None) + wire.finish()


def read(*values: Any, end: End | None = COMPLETED) -> UIMessage:
    return ui_message(body_of(*values, end=end))


# The chunks.


def test_an_answer_byte_for_byte() -> None:
    assert body_of("Hel", said(content="lo é\u2028"), ended("length")).decode() == (
        'data: {"type":"start","messageId":"msg_AAAAAAAAAAAAAAAAAAAAAA"}\n\n'
        'data: {"type":"start-step"}\n\n'
        'data: {"type":"text-start","id":"0"}\n\n'
        'data: {"type":"text-delta","id":"0","delta":"Hel"}\n\n'
        'data: {"type":"text-delta","id":"0","delta":"lo é\\u2028"}\n\n'
        'data: {"type":"text-end","id":"0"}\n\n'
        'data: {"type":"finish-step"}\n\n'
        'data: {"type":"finish","finishReason":"length"}\n\n'
        "data: [DONE]\n\n"
    )


def test_reasoning_and_text_are_parts_that_end_before_the_next_one_begins() -> None:
    message = read(said(reasoning="H"), said(reasoning="m", content="A"), "b", said(reasoning="?"))
    assert [(part["type"], part.get("text"), part.get("state")) for part in message.parts] == [
        ("step-start", None, None),
        ("reasoning", "Hm", "done"),
        ("text", "Ab", "done"),
        ("reasoning", "?", "done"),
    ]


def test_a_refusal_is_text() -> None:
    assert read(said(refusal="I can't.")).text == "I can't."


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool-calls"),
        ("content_filter", "content-filter"),
        ("load", "other"),
    ],
)
def test_the_finish_reason_is_one_that_the_client_knows(reason: str, finish: str) -> None:
    assert read("a", ended(reason)).finish == finish


def test_tool_calls_come_in_fragments_and_then_whole() -> None:
    message = read(
        "Let me see.",
        called(id="c1", name="weather"),
        called('{"ci'),
        called("", index=1, id="c2", name="time"),
        called('ty":\r\n"Rome"}'),
        ended("tool_calls"),
    )
    assert message.finish == "tool-calls"
    assert message.parts[2:] == [
        {
            "type": "tool-weather",
            "toolCallId": "c1",
            "state": "input-available",
            "raw": '{"city":\r\n"Rome"}',
            "input": {"city": "Rome"},
        },
        {
            "type": "tool-time",
            "toolCallId": "c2",
            "state": "input-available",
            "raw": "",
            "input": {},
        },
    ]


def test_a_text_ends_before_a_tool_call_which_is_whole_before_the_next_text() -> None:
    body = body_of("a", called("{}", id="c1", name="f"), "b")
    assert [chunk["type"] for chunk in chunks_of(body)[2:-3]] == [
        "text-start",
        "text-delta",
        "text-end",
        "tool-input-start",
        "tool-input-delta",
        "tool-input-available",
        "text-start",
        "text-delta",
        "text-end",
    ]


@pytest.mark.parametrize("arguments", ['{"ci', "[" * 100_000])
def test_arguments_that_are_not_json_are_an_error_of_the_call(arguments: str) -> None:
    [_, call] = read(called(arguments, id="c", name="f"), ended("tool_calls")).parts
    assert call["state"] == "output-error"
    assert "the arguments are not JSON" in call["errorText"]


def test_the_results_of_tools_that_the_source_runs_end_a_step() -> None:
    message = read(
        called("{}", id="c1", name="f"),
        called("{}", index=1, id="c2", name="g"),
        gave("c1", "22 degrees"),
        gave("c2", {"degrees": 22}),
        "It is",
        " warm.",
        called("{}", id="c3", name="f"),
        gave("c3", None),
    )
    kinds = [part["type"] for part in message.parts]
    assert kinds == ["step-start", "tool-f", "tool-g", "step-start", "text", "tool-f"]
    outputs = [part["output"] for part in message.parts if part["type"].startswith("tool-")]
    assert outputs == ["22 degrees", {"degrees": 22}, None]
    assert message.text == "It is warm."


def test_what_would_make_the_client_fail_is_left_out() -> None:
    """A result of no call, and a fragment of one that has not begun."""
    message = read(gave("c1", "22"), called("{}", index=3), "a")
    assert [part["type"] for part in message.parts] == ["step-start", "step-start", "text"]


def test_a_call_that_begins_at_the_index_of_another_one_completes_that_one() -> None:
    message = read(called("{}", id="c1", name="f"), called("[]", id="c2", name="g"))
    assert [(part["toolCallId"], part["input"]) for part in message.parts[1:]] == [
        ("c1", {}),
        ("c2", []),
    ]


def test_an_event_with_a_name_is_a_data_part_and_does_not_cut_the_text() -> None:
    message = read(
        "a",
        Event({"percent": 50}, event="progress"),
        Event(text="two\nlines", event="note"),
        Event(text="[1,\n2]", event="list"),
        Event(text="[" * 100_000, event="deep"),
        "b",
    )
    assert message.parts == [
        {"type": "step-start"},
        {"type": "text", "text": "ab", "state": "done"},
        {"type": "data-progress", "data": {"percent": 50}},
        {"type": "data-note", "data": "two\nlines"},
        {"type": "data-list", "data": [1, 2]},
        {"type": "data-deep", "data": "[" * 100_000},
    ]


# The end.


def test_a_failed_run_is_an_error_with_its_message() -> None:
    message = read("a", called("{", id="c", name="f"), end=End.failed(StreamError("it broke")))
    assert (message.error, message.finish, message.done) == ("it broke", None, True)
    assert message.text == "a"
    assert message.parts[-1]["state"] == "input-streaming", "the call is not complete"


def test_a_stopped_run_is_an_abort() -> None:
    message = read("a", end=End.cancelled("stopped"))
    assert (message.aborted, message.error, message.done) == ("stopped", None, True)


@pytest.mark.parametrize("reason", ["no reader", SHUTDOWN])
def test_a_run_that_nobody_has_stopped_is_no_abort(reason: str) -> None:
    message = read("a", end=End.cancelled(reason))
    assert message.error == f"the answer was cancelled: {reason}"
    assert (message.aborted, message.done) == (None, True)


def test_a_client_that_is_cut_off_is_told_so_and_that_there_may_be_more() -> None:
    message = read("a", end=None)
    assert (message.error, message.done) == ("the server is shutting down", False)


def test_a_gap_is_an_error_and_the_end() -> None:
    wire = UIStream(INFO)
    body = wire.start(INFO.start_frame, None) + wire.gap(3, EventId(INFO.run, 3))
    assert wire.done
    assert wire.finish() == b""
    message = ui_message(body)
    assert (message.error, message.done) == ("a part of the answer is no longer retained", False)


# Property tests.

VALUES = st.lists(
    st.one_of(
        st.text(min_size=1).filter(lambda text: text.isprintable()),
        st.builds(lambda text: said(reasoning=text), st.text()),
        st.builds(lambda text: said(content=text), st.text()),
        st.builds(lambda n: called("{}", id=f"c{n}", name="f"), st.integers(0, 3)),
        st.builds(lambda n: gave(f"c{n}", n), st.integers(0, 3)),
        st.builds(lambda text: Event(text, event="note"), st.text()),
    ),
    max_size=8,
)


@given(VALUES, st.data())
def test_a_resume_from_any_event_is_silent_until_it(values: list[Any], data: st.DataObject) -> None:
    after = data.draw(st.integers(0, len(values)))
    before = body_of(*values[:after], end=None, wire=Silent(INFO))
    wire = UIStream(INFO)
    wire.resume(after)
    assert before + body_of(*values, wire=wire) == body_of(*values)


@given(VALUES)
def test_every_text_arrives_once_and_in_order_whatever_is_between(values: list[Any]) -> None:
    message = read(*values)
    messages = [value["message"] for value in values if isinstance(value, dict)]
    assert message.text == "".join(
        value if isinstance(value, str) else value["message"].get("content") or ""
        for value in values
        if isinstance(value, str) or (isinstance(value, dict) and "done" in value)
    )
    assert message.reasoning == "".join(said.get("reasoning", "") for said in messages)
    assert message.done


class Silent(UIStream):
    """A wire whose end the client has not had."""

    def finish(self) -> bytes:
        return b""


# In an endpoint.


async def words(text: str = "one two") -> AsyncIterator[Any]:
    for word in text.split():
        yield f"{word} "


def chatting(
    streams: Streams, events: Callable[[], Any] = words, wire: Any = "ui", **options: Any
) -> Starlette:
    """An app with the endpoints of a chat, in which the header X-User says who the client is."""

    async def ask(request: Request) -> Response:
        query, owner = request.query_params, request.headers.get("x-user")
        return streams.response(
            request, events, name="answer", wire=wire, key=query.get("key"), owner=owner, **options
        )

    async def resume(request: Request) -> Response:
        prefix, owner = f"{request.path_params['chat']}/", request.headers.get("x-user")
        return await streams.resume(request, key_prefix=prefix, owner=owner, wire=wire)

    return Starlette(
        routes=[
            Route("/chat", ask, methods=["GET", "POST"]),
            Route("/chat/{chat}/stream", resume),
            Mount("/live", streams),
        ],
        lifespan=streams.lifespan,
    )


@pytest.mark.parametrize("accept", ["*/*", "application/jsonl", "application/json"])
async def test_the_wire_does_not_depend_on_what_the_client_accepts(accept: str) -> None:
    async with client_of(chatting(Streams())) as client:
        response = await client.post("/chat", headers={"Accept": accept})
        head = await client.head("/chat", headers={"Accept": accept})
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.headers["content-type"].startswith(UI)
    assert response.headers["cache-control"] == "no-store, no-transform"
    assert head.headers["content-type"].startswith(UI)
    assert head.headers["x-vercel-ai-ui-message-stream"] == "v1"
    message = ui_message(response.content)
    assert (message.text, message.finish, message.done) == ("one two ", "stop", True)
    assert response.headers["content-location"] == f"/live/runs/{(message.id or '')[4:]}"


async def test_a_refusal_is_a_problem_as_without_a_wire() -> None:
    async def refused() -> AsyncIterator[str]:
        raise StreamError("ask later", status=429, retry_after=7)
        yield ""

    async with client_of(chatting(Streams(), refused)) as client:
        response = await client.post("/chat")
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert response.json()["detail"] == "ask later"


class Letters(Wire):
    """A wire of an app's own: the events' data, after the run's key."""

    def __init__(self, info: RunInfo) -> None:
        self._key = info.key

    def event(self, event: LoggedEvent) -> bytes:
        return b"%s %b;" % (str(self._key).encode(), event.data)


async def test_a_wire_of_the_apps_own_is_made_from_what_is_known_of_the_run() -> None:
    async with client_of(chatting(Streams(), wire=Letters)) as client:
        response = await client.get("/chat?key=k")
    assert 'k "one ";k "two ";' in response.text


async def test_a_message_has_the_id_that_the_app_gives() -> None:
    app = chatting(Streams(), wire=lambda info: UIStream(info, "msg_of_before"))
    async with client_of(app) as client:
        assert ui_message((await client.post("/chat")).content).id == "msg_of_before"


@pytest.mark.parametrize("wire", ["json", 3])
def test_an_unknown_wire_is_an_error_that_lists_the_known_ones(wire: Any) -> None:
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []})
    with pytest.raises(ValueError, match=f"there is no wire {wire!r}; there is: 'ui'"):
        Streams().response(request, words, wire=wire)


async def test_a_client_that_knows_its_last_event_gets_the_chunks_of_what_follows() -> None:
    async with client_of(chatting(Streams())) as client:
        whole = await client.get("/chat?key=k")
        run = whole.headers["content-location"][-22:]
        after = {"Last-Event-ID": f"{run}.1"}
        rest = await client.get("/chat", headers=after)
        at_end = await client.get("/chat", headers={"Last-Event-ID": f"{run}.3"})
    first, *others = chunks_of(rest.content)
    assert first == {"type": "text-delta", "id": "0", "delta": "two "}
    assert others == chunks_of(whole.content)[-4:]
    assert at_end.status_code == 204


# Resume, as useChat does it.


@asynccontextmanager
async def half_an_answer(url: str, key: str = "chat-7/1") -> AsyncIterator[Connection]:
    """A client that has had the beginning of an answer."""
    async with connection(
        url, f"/chat?key={key}", method="POST", headers="X-User: ann\r\n"
    ) as stream:
        await stream.until(lambda stream: b'"delta":"one "' in stream.body, "half the answer")
        yield stream


def gated_words(gate: asyncio.Event) -> Callable[[], AsyncIterator[str]]:
    async def answer() -> AsyncIterator[str]:
        yield "one "
        await gate.wait()
        yield "two "

    return answer


async def test_a_chat_that_is_opened_again_replays_its_running_answer_and_follows_it() -> None:
    gate, streams = asyncio.Event(), Streams()
    headers = "X-User: ann\r\n"
    async with serving(chatting(streams, gated_words(gate))) as url:
        async with half_an_answer(url) as first:
            run = first.run
        await until(lambda: not streams.log.readers, "the first client has gone")
        async with connection(url, "/chat/chat-7/stream", headers=headers) as again:
            await again.until(lambda again: b'"delta":"one "' in again.body, "the beginning")
            gate.set()
            await again.until(lambda again: again.terminated, "the answer is complete")
    message = ui_message(again.body)
    assert (message.id, message.text, message.finish) == (f"msg_{run}", "one two ", "stop")
    assert f"content-location: /live/runs/{run.lower()}\r\n" in again.head
    assert "x-vercel-ai-ui-message-stream: v1" in again.head


async def test_only_the_owner_resumes_and_only_a_running_answer_of_that_chat() -> None:
    gate, streams = asyncio.Event(), Streams()
    async with serving(chatting(streams, gated_words(gate))) as url:
        async with httpx.AsyncClient(base_url=url) as client, half_an_answer(url) as first:
            for chat, user in [("chat-7", "bob"), ("chat-8", "ann"), ("chat", "ann")]:
                response = await client.get(f"/chat/{chat}/stream", headers={"X-User": user})
                assert (response.status_code, response.content) == (204, b"")
            head = await client.head("/chat/chat-7/stream", headers={"X-User": "ann"})
            assert head.headers["x-vercel-ai-ui-message-stream"] == "v1"
            gate.set()
            await first.until(lambda first: first.terminated, "the answer is complete")
            ended = await client.get("/chat/chat-7/stream", headers={"X-User": "ann"})
            assert ended.status_code == 204


async def test_the_newest_of_several_running_answers_is_resumed() -> None:
    gate = asyncio.Event()
    async with serving(chatting(Streams(), gated_words(gate))) as url:
        async with half_an_answer(url), half_an_answer(url, key="chat-7/2") as newest:
            async with connection(url, "/chat/chat-7/stream", headers="X-User: ann\r\n") as again:
                await again.until(lambda again: b'"delta"' in again.body, "the beginning")
                assert again.run == newest.run


async def test_without_a_wire_a_resumed_run_is_what_the_client_accepts() -> None:
    gate = asyncio.Event()
    async with serving(chatting(Streams(), gated_words(gate), wire=None)) as url:
        async with connection(
            url, "/chat?key=chat-7/1", method="POST", headers="X-User: ann\r\n"
        ) as first:
            await first.until(lambda first: b"one" in first.body, "half the answer")
            headers = "X-User: ann\r\nAccept: application/jsonl\r\n"
            async with connection(url, "/chat/chat-7/stream", headers=headers) as again:
                await again.until(lambda again: b"one" in again.body, "the beginning")
                assert "content-type: application/jsonl" in again.head


async def test_a_stop_on_the_server_aborts_the_message() -> None:
    gate, streams = asyncio.Event(), Streams()
    async with serving(chatting(streams, gated_words(gate))) as url:
        async with half_an_answer(url) as first:
            [log] = await streams.runs.list(key_prefix="chat-7/", owner="ann", status="running")
            await streams.runs.stop(log.info.run)
            await first.until(lambda first: first.terminated, "the answer has ended")
    message = ui_message(first.body)
    assert (message.text, message.aborted, message.done) == ("one ", "stopped", True)


async def test_an_answer_whose_beginning_is_lost_is_an_error() -> None:
    gate = asyncio.Event()

    async def long() -> AsyncIterator[str]:
        for _ in range(100):
            yield "x" * 100
        yield "one "
        await gate.wait()

    async with serving(chatting(Streams(), long, window=1000)) as url:
        async with half_an_answer(url):
            async with connection(url, "/chat/chat-7/stream", headers="X-User: ann\r\n") as again:
                await again.until(lambda again: again.terminated, "the response has ended")
    message = ui_message(again.body)
    assert (message.error, message.done) == ("a part of the answer is no longer retained", False)


async def test_heartbeats_are_comments() -> None:
    gate = asyncio.Event()
    app = chatting(Streams(heartbeat=0.01), gated_words(gate))
    async with serving(app) as url, half_an_answer(url) as stream:
        await stream.until(lambda stream: stream.body.endswith(b"\n:\n:\n:\n"), "three heartbeats")
        gate.set()
        await stream.until(lambda stream: stream.terminated, "the answer is complete")
    assert ui_message(stream.body).text == "one two "


async def test_any_worker_resumes_and_stops_an_answer(tmp_path: Any) -> None:
    log = f"sqlite:{tmp_path / 'runs.db'}"
    gate = asyncio.Event()
    first, second = Streams(log=log), Streams(log=log)
    async with (
        serving(chatting(first, gated_words(gate))) as url,
        serving(chatting(second)) as other,
        half_an_answer(url),
        connection(other, "/chat/chat-7/stream", headers="X-User: ann\r\n") as again,
    ):
        await again.until(lambda again: b'"delta":"one "' in again.body, "the beginning")
        [log_of_run] = await second.runs.list(key_prefix="chat-7/", owner="ann", status="running")
        await second.runs.stop(log_of_run.info.run)
        await again.until(lambda again: again.terminated, "the answer has ended")
    assert ui_message(again.body).aborted == "stopped"


async def test_a_guard_is_asked_before_a_keyed_run_of_its_source_is_resumed() -> None:
    admitted = [True]

    @source(guard=lambda request: admitted[0])
    async def guarded() -> AsyncIterator[str]:
        yield "one "
        await anyio.sleep_forever()

    streams = Streams([guarded], identity=lambda request: "ann")
    async with (
        serving(chatting(streams)) as url,
        connection(url, "/live/streams/guarded?idempotency_key=chat-7/1") as stream,
        httpx.AsyncClient(base_url=url) as client,
    ):
        await stream.until(lambda stream: b"one" in stream.body, "the run has begun")
        admitted[0] = False
        assert (await client.get("/chat/chat-7/stream")).status_code == 403


async def test_the_mock_model_answers() -> None:
    app = chatting(Streams(), lambda: tokens("Hi", reply="Well, hello!", **QUICK))
    async with client_of(app) as client:
        message = ui_message((await client.post("/chat")).content)
    assert (message.text, message.finish) == ("Well, hello!", "stop")


# What useChat sends.


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "m", "role": "user", "parts": list(parts)}


def assistant(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "a", "role": "assistant", "parts": list(parts), "metadata": {"x": 1}}


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


STEP = {"type": "step-start"}


def tool(state: str, kind: str = "tool-weather", **members: Any) -> dict[str, Any]:
    given = {"toolCallId": "c1", "input": {"city": "Rome"}}
    return {"type": kind, "state": state, **given, **members}


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
}


def test_texts_of_all_roles_keep_their_order() -> None:
    system = {"id": "s", "role": "system", "parts": [text("Be brief.")]}
    assert chat_messages([system, user(text("Hi")), assistant(STEP, text("He"), text("llo"))]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]


def test_several_parts_of_a_user_stay_parts_and_files_are_images_or_files() -> None:
    picture = {"type": "file", "mediaType": "image/png", "url": "https://a.example/x.png"}
    paper = {"type": "file", "mediaType": "application/pdf", "url": "data:application/pdf;base64,A"}
    [message] = chat_messages([user(picture, {**paper, "filename": "a.pdf"}, paper, text("What?"))])
    data = paper["url"]
    assert message["content"] == [
        {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": data}},
        {"type": "file", "file": {"filename": "file", "file_data": data}},
        {"type": "text", "text": "What?"},
    ]


def test_a_tool_call_is_followed_by_its_result_and_then_by_the_next_step() -> None:
    assert chat_messages(
        [assistant(STEP, text("See:"), tool("output-available", output={"t": 22}), STEP, text("!"))]
    ) == [
        {"role": "assistant", "content": "See:", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"t":22}'},
        {"role": "assistant", "content": "!"},
    ]


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (tool("output-available", output="22 °C"), "22 °C"),
        (tool("output-available", output=None), "null"),
        (tool("output-available", "dynamic-tool", toolName="weather", output="x"), "x"),
        (tool("output-error", errorText="no network"), "no network"),
        (tool("output-error", input=None, rawInput={"city": "Rome"}, errorText="x"), "x"),
        (tool("output-denied", approval={"reason": "too dear"}), "too dear"),
        (tool("output-denied"), "the user has not allowed this call"),
    ],
)
def test_every_result_of_a_tool_is_text(part: dict[str, Any], content: str) -> None:
    call, result = chat_messages([assistant(part)])
    assert call["tool_calls"] == [CALL]
    assert result == {"role": "tool", "tool_call_id": "c1", "content": content}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "reasoning", "text": "Hm"},
        {"type": "source-url", "sourceId": "s", "url": "https://a.example"},
        {"type": "data-progress", "data": 1},
        {"type": "file", "mediaType": "image/png", "url": "data:,"},
        {"type": "unheard-of"},
        {},
        tool("input-streaming"),
        tool("input-available"),
        tool("approval-requested"),
        tool("output-available", output=1, preliminary=True),
    ],
)
def test_what_a_model_does_not_take_is_left_out(part: dict[str, Any]) -> None:
    assert chat_messages([user(text("Hi")), assistant(STEP, part, text("a"))]) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "a"},
    ]
    assert len(chat_messages([user(text("Hi")), assistant(STEP, part)])) == 1


def test_what_the_wire_sends_comes_back_as_the_same_messages() -> None:
    message = read(said(reasoning="Hm"), called('{"city":"Rome"}', id="c1", name="weather"))
    message.parts[-1] |= {"state": "output-available", "output": "22"}
    parts = [*message.parts, *read("Warm.").parts]
    assert chat_messages([{"role": "assistant", "parts": parts}]) == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "22"},
        {"role": "assistant", "content": "Warm."},
    ]


FILE = {"type": "file", "mediaType": "text/plain", "url": "https://a.example"}


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        ("Hi", r"Expected `array`, got `str`"),
        ([], "none of them has a text or a file"),
        ([user({"type": "data-x", "data": 1})], "none of them has a text or a file"),
        ([{"role": "user", "content": "Hi"}], r"missing required field `parts` - at `\$\[0\]`"),
        ([{"role": "x" * 1000, "parts": []}], r"no role 'x{59}… .* - at `\$\[0\]\.role`"),
        ([user({"type": "text"})], r"Expected `str`, got None - at `\$\[0\]\.parts\[0\]\.text`"),
        ([user({**FILE, "mediaType": 3})], r"got 3 - at `\$\[0\]\.parts\[0\]\.mediaType`"),
        ([user(FILE)], r"has to be a data: URL - at `\$\[0\]\.parts\[0\]\.url`"),
        ([assistant(tool("output-error"))], r"at `\$\[0\]\.parts\[0\]\.errorText`"),
        ([assistant(tool("output-error", errorText="", toolCallId=1))], r"\.toolCallId`"),
        ([assistant(tool("output-denied", "dynamic-tool"))], r"\.toolName`"),
    ],
)
def test_a_conversation_that_is_invalid_is_a_422_that_says_where(sent: Any, detail: str) -> None:
    with pytest.raises(StreamError, match=f"^messages: .*{detail}") as raised:
        chat_messages(sent)
    assert raised.value.status == 422
    assert len(str(raised.value)) < 250


async def test_an_invalid_conversation_is_the_answer_of_the_endpoint() -> None:
    async with client_of(chatting(Streams(), lambda: tokens(messages=chat_messages([])))) as client:
        response = await client.post("/chat")
    assert response.status_code == 422
    assert response.json()["detail"].startswith("messages: none of them")
