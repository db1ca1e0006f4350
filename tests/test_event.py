"""event.py: the values that a source may yield, and their frames."""

import dataclasses
import enum
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sse_starlette import ServerSentEvent

from streams import Event
from streams.errors import InvalidEventId, UnencodableValue
from streams.event import RESERVED_NAMES, EventId, frame, parse_frames, payload

RUN = b"AAAAAAAAAAAAAAAAAAAAAA"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


class Line(msgspec.Struct):
    y: int


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ({"a": [1, None, True]}, b'{"a":[1,null,true]}'),
        ("text is quoted", b'"text is quoted"'),
        (1.5, b"1.5"),
        (None, b"null"),
        (float("nan"), b"null"),
        ({1}, b"[1]"),
        (Point(1), b'{"x":1}'),
        (Line(2), b'{"y":2}'),
        (Colour.RED, b'"red"'),
        (datetime(2026, 1, 2, tzinfo=UTC), b'"2026-01-02T00:00:00Z"'),
        (uuid.UUID(int=0), b'"00000000-0000-0000-0000-000000000000"'),
        (2**70, b"1180591620717411303424"),
    ],
)
def test_a_json_value_becomes_the_data(value: Any, data: bytes) -> None:
    assert payload(value) == (None, data)
    assert payload(Event(value)) == (None, data)


def test_an_event_may_have_a_name_and_text_that_is_not_json() -> None:
    assert payload(Event({"a": 1}, event="progress")) == (b"progress", b'{"a":1}')
    assert payload(Event(text="a\nb")) == (None, b"a\nb")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_are_escaped(separator: str) -> None:
    """They end no line in an event stream, but some clients split lines at them."""
    _, data = payload({"text": f"é{separator}1"})
    assert len(data.decode().splitlines()) == 1
    assert json.loads(data) == {"text": f"é{separator}1"}


@pytest.mark.parametrize("value", [object(), {"a": {"b": object}}, "\ud800", {(1, 2): 3}])
def test_the_error_for_an_unencodable_value_names_its_type(value: Any) -> None:
    with pytest.raises(UnencodableValue, match=type(value).__name__):
        payload(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(UnencodableValue):
        payload(value)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "", "\ud800", *sorted(RESERVED_NAMES)])
def test_event_refuses_an_invalid_or_reserved_name(name: str) -> None:
    with pytest.raises(ValueError, match="event name"):
        Event(1, event=name)


def test_event_refuses_data_together_with_text_and_neither() -> None:
    with pytest.raises(ValueError, match="either data or text"):
        Event(1, text="1")
    with pytest.raises(ValueError, match="either data or text"):
        Event(event="name")
    with pytest.raises(ValueError, match="text cannot be encoded as UTF-8"):
        Event(text="\ud800")


def test_the_number_in_an_event_id_is_below_2_to_the_53() -> None:
    """Lua and JavaScript would round a larger one, so that it became another event's."""
    last = EventId(RUN.decode(), 2**53 - 1)
    assert EventId.parse(str(last)) == last
    for number in (2**53, 2**53 + 1, 10**16, 10**100):
        with pytest.raises(InvalidEventId, match="is not an id that this server sends"):
            EventId.parse(f"{RUN.decode()}.{number}")


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1)


@given(
    st.integers(0, 10**16),
    st.none() | names,
    st.text(st.sampled_from("ab\r\n :é\u2028") | st.characters(exclude_categories=["Cs"])),
)
def test_a_frame_equals_that_of_sse_starlette_byte_for_byte(
    number: int, name: str | None, data: str
) -> None:
    encoded = None if name is None else name.encode()
    expected = ServerSentEvent(data, event=name, id=f"{RUN.decode()}.{number}", sep="\n")
    assert frame(RUN, number, encoded, data.encode()) == expected.encode()


@given(
    st.lists(
        st.tuples(
            st.none() | st.sampled_from(["tick", "end", "é"]),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")),
        ),
        max_size=8,
    )
)
def test_parsing_frames_gives_back_number_name_and_data(
    events: list[tuple[str | None, str]],
) -> None:
    frames = b"".join(
        frame(b"r", number, name.encode() if name else None, data.encode())
        for number, (name, data) in enumerate(events)
    )
    assert [(event.name, event.data.decode()) for event in parse_frames(frames)] == [
        (name or "message", data) for name, data in events
    ]
    assert [event.number for event in parse_frames(frames)] == list(range(len(events)))
