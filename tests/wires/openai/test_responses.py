"""A response as the events of a run make it, read by the models of OpenAI's own client."""

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import httpx
import httpx_sse
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response as SDKResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from streams.encoding import LARGE
from streams.event import COMPLETED, NO_READER, SHUTDOWN, End, Payload, encode_json, frame
from streams.wires.openai.kept import REQUEST, Kept
from streams.wires.openai.response_input import parse, repeated
from streams.wires.openai.responses import Response, ResponsesWire
from tests.support.agent import call, done, piece
from tests.support.event_logs import info
from tests.support.turns import at_once, turns_and_result

RUN = "A" * 22
INFO = info(RUN)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def kept(limit: int | None = None, **fields: Any) -> Kept:
    request, given = at_once(parse(encode_json({"model": "m", "input": "Hello?", **fields})))
    response = {name: raw(value) for name, value in repeated(request, given).items()}
    return Kept(response=response, input=raw(request.items), input_tokens=7, limit=limit)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(encode_json(value))


def frames_of(
    *values: Any, end: End | None = COMPLETED, request: Kept | None = None
) -> list[bytes]:
    """The frames of a run whose source yields these values."""
    events: list[Payload] = [
        (b"start", INFO.start),
        (REQUEST.encode(), encode_json(request or kept())),
    ]
    events += [(None, encode_json(value)) for value in values]
    if end is not None:
        events.append((b"end", end.encode()))
    return [frame(RUN.encode(), number, *event) for number, event in enumerate(events)]


def sent(frames: list[bytes], after: int = -1) -> bytes:
    """The body of a response that gets these pieces from its log."""
    wire = ResponsesWire(INFO, after)
    body = wire.begin() + wire.start(frames[0], "/runs/x")
    for piece_ in frames[1:]:
        if not wire.done:
            body += wire.feed(piece_)
    return body + wire.finish()


def events_in(body: bytes) -> list[dict[str, Any]]:
    """The events of a body, each as the client's models accept it."""
    response = httpx.Response(200, content=body, headers={"Content-Type": "text/event-stream"})
    events = []
    for event in httpx_sse.EventSource(response).iter_sse():
        data = json.loads(event.data)
        assert event.event == data["type"]
        EVENT.validate_python(data)
        if "response" in data:
            SDKResponse.model_validate(data["response"])
        events.append(data)
    return events


def events_of(*values: Any, **options: Any) -> list[dict[str, Any]]:
    return events_in(sent(frames_of(*values, **options)))


def final(events: list[dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = events[-1]["response"]
    return response


def types_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_each_step_of_work_on_a_large_request_has_a_turn() -> None:
    start, request = frames_of(request=kept(instructions="x" * LARGE), end=None)
    wire = ResponsesWire(INFO)
    wire.start(start, None)
    turns, body = turns_and_result(wire.feed_large(request))
    assert turns == 4, "it is parsed, decoded, and sent in two events"
    small = ResponsesWire(INFO)
    small.start(start, None)
    assert body == small.feed(request)


def test_a_text_is_a_message_with_one_part() -> None:
    events = events_of("Hel", piece(content="lo"), done(prompt_eval_count=3, eval_count=2))
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    response = final(events)
    assert (response["id"], response["status"]) == (f"resp_{RUN}", "completed")
    text = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    item = {
        "id": f"msg_{RUN}_0",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [text],
    }
    assert response["output"] == [item]
    assert response["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5,
    }


def test_reasoning_is_an_item_with_a_summary_before_the_message() -> None:
    events = events_of(piece(reasoning="Let me "), piece(reasoning="think."), "Hi")
    assert types_of(events)[2:9] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    reasoning, message = final(events)["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Let me think."}]
    assert message["content"][0]["text"] == "Hi"


def test_tool_calls_whose_fragments_alternate_are_items_of_their_own() -> None:
    events = events_of(
        call(0, "call_a", "weather", ""),
        call(1, "call_b", "time", '{"zo'),
        call(0, None, None, '{"city":'),
        call(1, None, None, 'ne":1}'),
        call(0, None, None, '"Paris"}'),
        done("tool_calls"),
    )
    assert types_of(events)[2:] == [
        "output_item.added",
        "output_item.added",
        *["function_call_arguments.delta"] * 4,
        *["function_call_arguments.done", "output_item.done"] * 2,
        "completed",
    ]
    assert events[2]["item"] | {"status": ""} == final(events)["output"][0] | {
        "status": "",
        "arguments": "",
    }
    calls = [(item["call_id"], item["arguments"]) for item in final(events)["output"]]
    assert calls == [("call_a", '{"city":"Paris"}'), ("call_b", '{"zone":1}')]
    for index, (_, arguments) in enumerate(calls):
        deltas = [e["delta"] for e in events if "delta" in e and e["output_index"] == index]
        assert "".join(deltas) == arguments


def test_a_refusal_is_a_part_of_the_message() -> None:
    events = events_of("Well, ", piece(refusal="I "), piece(refusal="can't."))
    assert types_of(events)[3:12] == [
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "content_part.added",
        "refusal.delta",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
    ]
    assert events[7]["content_index"] == 1
    (message,) = final(events)["output"]
    assert message["content"][1] == {"type": "refusal", "refusal": "I can't."}


def test_what_follows_tool_calls_is_a_message_of_its_own() -> None:
    events = events_of("One. ", call(0, "c", "f", "{}"), "Two.", call(0, "d", "g", "{}"))
    items = [item["type"] for item in final(events)["output"]]
    assert items == ["message", "function_call"] * 2


@pytest.mark.parametrize("values", [[], [piece(reasoning="Hm")]])
def test_an_answer_without_text_has_an_empty_message(values: list[Any]) -> None:
    response = final(events_of(*values))
    assert response["output"][-1]["content"][0]["text"] == ""
    assert response["status"] == "completed"


@pytest.mark.parametrize(
    ("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_is_cut_is_incomplete_with_the_reason(reason: str, told: str) -> None:
    events = events_of("Hel", done(reason))
    assert events[-1]["type"] == "response.incomplete"
    response = final(events)
    assert response["incomplete_details"] == {"reason": told}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["usage"]["output_tokens"] == 1


def test_pieces_are_counted_if_the_source_cannot_be_told_the_limit() -> None:
    within = events_of("a", "b", request=kept(limit=3))
    beyond = events_of("a", "b", "c", "d", request=kept(limit=3))
    assert final(within)["status"] == "completed"
    assert final(beyond)["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final(beyond)["output"][0]["content"][0]["text"] == "abc"


def test_a_source_that_does_not_count_gets_a_guess() -> None:
    usage = final(events_of("a", "b"))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 2, 9)


def test_a_failure_is_a_failed_response_with_its_message() -> None:
    end = End("failed", error={"type": "Broken", "message": "it broke"})
    events = events_of("Hel", end=end)
    assert events[-1]["type"] == "response.failed"
    response = final(events)
    assert (response["status"], response["usage"]) == ("failed", None)
    assert response["error"] == {"code": "server_error", "message": "it broke"}
    assert response["output"][0]["content"][0]["text"] == "Hel"
    assert response["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize(
    ("reason", "status"), [("stopped", "cancelled"), (NO_READER, "failed"), (SHUTDOWN, "failed")]
)
def test_only_a_client_cancels_a_response(reason: str, status: str) -> None:
    response = final(events_of("Hel", end=End.cancelled(reason)))
    assert response["status"] == status
    assert (response["error"] is None) == (status == "cancelled")


def test_log_probabilities_have_bytes() -> None:
    top = {"token": "H", "logprob": -1.0, "bytes": None}
    logprobs = {"content": [{"token": "é", "logprob": -0.1, "bytes": None, "top_logprobs": [top]}]}
    events = events_of({**piece(content="é"), "logprobs": logprobs})
    expected = {
        "token": "é",
        "logprob": -0.1,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "H", "logprob": -1.0, "bytes": [72]}],
    }
    assert events[4]["logprobs"] == [expected]
    assert final(events)["output"][0]["content"][0]["logprobs"] == [expected]


def test_a_response_repeats_its_request() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    tool = {"type": "function", "name": "f", "parameters": {}, "strict": True}
    asked: dict[str, Any] = {
        "instructions": "Be kind.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": form, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "previous_response_id": "resp_x",
        "store": False,
    }
    response = final(events_of(request=kept(**asked)))
    repeated = {name: response[name] for name in asked}
    assert repeated == {
        **asked,
        "tools": [{"description": None, **tool}],
        "reasoning": {"effort": "low", "summary": None},
    }


def test_a_stream_that_is_cut_ends_with_an_error_that_repeats_the_last_number() -> None:
    frames = frames_of("a", "b", "c")
    cut = events_in(sent(frames[:-2]))
    assert (cut[-1]["type"], cut[-1]["code"]) == ("error", "shutdown")
    assert cut[-1]["sequence_number"] == cut[-2]["sequence_number"]
    whole = events_in(sent(frames))
    assert cut[:-1] + events_in(sent(frames, cut[-1]["sequence_number"])) == whole


def test_a_reader_that_is_cut_before_its_position_is_told_its_position() -> None:
    (error,) = events_in(sent(frames_of("a", "b", "c")[:-2], after=50))
    assert error["sequence_number"] == 50


def test_a_run_without_a_request_is_no_response() -> None:
    frames = [frame(RUN.encode(), 0, b"start", INFO.start), frame(RUN.encode(), 1, None, b'"a"')]
    response = Response(INFO)
    wire = ResponsesWire(INFO)
    assert wire.start(frames[0], None) + wire.feed(frames[1]) == b""
    assert response.kept is None


TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
PIECES = st.one_of(
    TEXT,
    TEXT.map(lambda text: piece(content=text)),
    TEXT.map(lambda text: piece(reasoning=text)),
    TEXT.map(lambda text: piece(refusal=text)),
    st.builds(lambda index, text: call(index, f"call_{index}", "f", text), st.integers(0, 2), TEXT),
    st.builds(lambda a, b: piece(content=a, reasoning=b), TEXT, TEXT),
)
ENDS = st.sampled_from(
    [COMPLETED, End.cancelled("stopped"), End("failed", error={"type": "T", "message": "m"})]
)
RUNS = st.builds(
    lambda values, last, end: frames_of(*values, *last, end=end),
    st.lists(PIECES, max_size=8),
    st.sampled_from([[], [done("length")], [done("tool_calls")], [done("content_filter")]]),
    ENDS,
)


@given(RUNS)
def test_the_events_are_numbered_without_holes_and_are_what_the_client_expects(
    frames: list[bytes],
) -> None:
    events = events_in(sent(frames))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert types_of(events)[-1] in ("completed", "incomplete", "failed")


@given(RUNS)
def test_the_deltas_add_up_to_the_output(frames: list[bytes]) -> None:
    events = events_in(sent(frames))
    texts: dict[tuple[int, int], str] = {}
    for event in events:
        if "delta" in event:
            place = event["output_index"], event.get("content_index", 0)
            texts[place] = texts.get(place, "") + event["delta"]
    for index, item in enumerate(final(events)["output"]):
        parts = item.get("content") or item.get("summary") or [{"text": item.get("arguments")}]
        for number, part in enumerate(parts):
            assert texts.get((index, number), "") == part.get("text", part.get("refusal"))


@given(RUNS, st.data())
def test_the_bytes_after_a_number_do_not_depend_on_the_pieces_and_repeat_nothing(
    frames: list[bytes], data: st.DataObject
) -> None:
    whole = sent(frames)
    blocks = whole.split(b"\n\n")[:-1]
    cuts = data.draw(st.sets(st.integers(1, len(frames) - 1)))
    bounds = [0, *sorted(cuts), len(frames)]
    pieces = [b"".join(frames[a:b]) for a, b in pairwise(bounds)]
    after = data.draw(st.integers(-1, len(blocks) - 1))
    rest = b"".join(block + b"\n\n" for block in blocks[after + 1 :])
    assert sent(pieces, after) == rest


def test_a_reader_does_not_keep_the_conversation() -> None:
    size = 2_000_000
    start, request, *_ = frames_of(request=kept(input=size * "x"))
    tracemalloc.start()
    try:
        wire = ResponsesWire(INFO)
        wire.start(start, None)
        body = wire.feed(request)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert b"response.in_progress" in body
    assert held < size < most
