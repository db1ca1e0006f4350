"""What the events of a model's run say."""

from typing import Any

import pytest

from streams.event import COMPLETED, End, LoggedEvent, encode_json
from streams.wires.answer import Answer, Piece, ToolCall, ToolResult, Usage

DONE = {"message": {"content": ""}, "done": True, "done_reason": "length", "eval_count": 2}


def message(**members: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **members}, "done": False}


def event(value: Any, name: str = "message") -> LoggedEvent:
    return LoggedEvent(1, name, value if isinstance(value, bytes) else encode_json(value))


@pytest.mark.parametrize(
    ("value", "piece"),
    [
        ("Hel", Piece("Hel")),
        (b"Hel", Piece("Hel")),
        pytest.param(b"[" * 10_000, Piece("[" * 10_000), id="a text that looks like deep JSON"),
        (3, Piece("3")),
        (message(content="Hel"), Piece("Hel")),
        (message(reasoning="Hm"), Piece(reasoning="Hm")),
        (message(refusal="No"), Piece(refusal="No")),
        (
            message(tool_calls=[{"index": 1, "id": "c", "function": {"name": "f"}}]),
            Piece(tool_calls=(ToolCall(1, "c", "f"),)),
        ),
        (
            message(tool_calls=[{"index": 1, "function": {"arguments": "{}"}}]),
            Piece(tool_calls=(ToolCall(1, arguments="{}"),)),
        ),
        (
            {"message": {"role": "tool", "tool_call_id": "c", "content": {"degrees": 22}}},
            Piece(tool_result=ToolResult("c", {"degrees": 22})),
        ),
        (message(), Piece()),
        ({"other": 1}, Piece()),
        (DONE, Piece()),
    ],
)
def test_an_event_adds_what_it_says(value: Any, piece: Piece) -> None:
    assert Answer().feed(event(value)) == piece


def test_an_event_with_a_name_of_its_own_adds_nothing() -> None:
    assert not Answer().feed(event("Hel", "status"))


def test_the_result_of_a_tool_is_nothing_that_the_model_says() -> None:
    assert not Answer().feed(event({"message": {"role": "tool", "content": "22"}}))


def test_a_completed_run_finishes_for_the_reason_of_its_last_event() -> None:
    answer = Answer()
    answer.feed(event(DONE))
    assert not answer.over
    answer.feed(event(COMPLETED.encode(), "end"))
    assert (answer.finish, answer.error, answer.usage) == ("length", None, Usage(None, 2))
    assert not answer.feed(event("more"))


def test_a_failed_or_cancelled_run_ends_with_an_error() -> None:
    for end, code in [
        (End("failed", error={"type": "Broken", "message": "it broke"}), "Broken"),
        (End.cancelled("stopped"), "cancelled"),
    ]:
        answer = Answer()
        answer.feed(event(end.encode(), "end"))
        assert answer.error is not None
        assert answer.error.members["code"] == code


def test_what_happens_after_the_end_changes_nothing() -> None:
    answer = Answer()
    answer.feed(event(COMPLETED.encode(), "end"))
    answer.interrupt()
    answer.lose()
    assert (answer.finish, answer.error) == ("stop", None)
