"""encoding.py and the Encoder of event.py: pydantic's models, `encode`, and errors with a path."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.datastructures import QueryParams

from streams import Event, Streams, source
from streams.errors import InvalidParameters, UnencodableValue
from streams.event import Encoder, decode_json, decode_json_object, payload
from tests.support.servers import client_of, every_event


class Size(BaseModel):
    side: int


class Box(BaseModel):
    size: Size
    packed: date | None = None


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_from_outside_is_what_python_makes_of_it(number: float) -> None:
    text = json.dumps([number])
    assert repr(decode_json(text)) == repr(decode_json_object(f'{{"a":{text}}}')["a"]) == text


@pytest.mark.parametrize("number", ["1e309", "-1e309", "9" * 400 + ".0"])
def test_a_number_beyond_the_range_of_a_float_is_refused(number: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="out of range"):
        decode_json(number)


def test_no_number_is_decoded_by_msgspec_which_takes_25_us_for_some() -> None:
    decoders: list[Any] = [decode_json, decode_json_object]
    for decode in decoders:
        assert decode.__self__.float_hook("1e308") == 1e308


class Timestamp:
    """Stands for a class of another package, such as pandas.Timestamp."""

    def isoformat(self) -> str:
        return "2026-01-02"


class Shelf(msgspec.Struct):
    boxes: list[Any]


@dataclass
class Crate:
    content: Any


BOX = Box(size=Size(side=1), packed=date(2026, 1, 2))
ENCODED = b'{"size":{"side":1},"packed":"2026-01-02"}'


@source
async def packed(
    box: Box,
    boxes: list[Box] = [],  # noqa: B006
    size: Size = Size(side=3),  # noqa: B008
    *,
    after: int = 0,
) -> AsyncIterator[Any]:
    yield box
    yield Event({"boxes": boxes}, event="rest")
    yield size


def test_a_pydantic_model_is_encoded_wherever_it_is_in_a_value() -> None:
    assert payload(BOX) == (None, ENCODED)
    assert payload(Event(BOX, event="box")) == (b"box", ENCODED)
    assert payload([{"box": BOX}]) == (None, b'[{"box":' + ENCODED + b"}]")
    assert payload(Shelf([BOX])) == (None, b'{"boxes":[' + ENCODED + b"]}")


async def test_a_pydantic_model_is_a_parameter() -> None:
    async with client_of(Streams([packed])) as client:
        body = {
            "box": {"size": {"side": 1}, "packed": "2026-01-02"},
            "boxes": [{"size": {"side": 2}}],
        }
        events = await every_event(client, "/streams/packed", method="POST", json=body)
        assert events[1].data == ENCODED.decode()
        assert events[2].json() == {"boxes": [{"size": {"side": 2}, "packed": None}]}
        assert events[3].json() == {"side": 3}


def test_all_faults_of_a_pydantic_parameter_are_in_one_line() -> None:
    with pytest.raises(InvalidParameters) as caught:
        packed.from_json(b'{"box": {"size": {"side": "x"}, "packed": 3.5}}')
    detail = caught.value.members["errors"][0]["detail"]
    assert detail.startswith("size.side: Input should be a valid integer, ")
    assert "; packed: " in detail
    assert "\n" not in detail
    with pytest.raises(InvalidParameters, match="box: input should be a valid dict"):
        packed.from_query(QueryParams("box=3"))


def test_the_schema_of_a_pydantic_parameter_is_published() -> None:
    schema = packed.schema
    assert schema["properties"]["box"]["properties"]["size"] == {"$ref": "#/$defs/Size"}
    assert schema["properties"]["size"]["default"] == {"side": 3}
    assert schema["$defs"]["Size"]["properties"]["side"]["type"] == "integer"
    assert "$defs" not in str(schema["properties"]).replace("#/$defs/", "")
    assert schema["required"] == ["box"]


async def test_a_pydantic_argument_can_be_moved_to_another_worker() -> None:
    arguments = packed.from_json(b'{"box": {"size": {"side": 1}}}')
    job = await packed.job(arguments, None, policy=Streams().policy)
    assert job.arguments is not None
    assert packed.from_json(job.arguments.encode()) == arguments


def encode(value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.isoformat()
    if isinstance(value, PurePosixPath):
        return {"path": str(value)[1:], "first": str(value)[0]}
    raise NotImplementedError


async def test_encode_converts_types_that_msgspec_does_not_know() -> None:
    @source
    async def rows() -> AsyncIterator[Any]:
        yield {"rows": [{"when": Timestamp()}]}
        yield Event(PurePosixPath("/a"), event="path")
        yield BOX

    async with client_of(Streams([rows], encode=encode)) as client:
        events = await every_event(client, "/streams/rows")
    assert [event.json() for event in events[1:3]] == [
        {"rows": [{"when": "2026-01-02"}]},
        {"path": "a", "first": "/"},
    ]
    assert events[3].data == ENCODED.decode()


@pytest.mark.parametrize("encoder", [Encoder(), Encoder(encode)])
@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"rows": [1, 2, 3, {"when": object()}]}, r"a dict .*: rows\[3\].when: object: Encoding"),
        ({"a b": {1: {object}}}, r"a dict .*: \['a b'\]\[1\]\[0\]: type: "),
        (Shelf([object()]), r"a Shelf .*: boxes\[0\]: object: "),
        ([{(1, 2): 3}], r"a list .*: \[0\]: dict: "),
        (object(), r"a object .*: Encoding objects of type object is unsupported"),
        (Event([object()]), r"a list .*: \[0\]: object: "),
    ],
)
def test_the_error_for_an_unencodable_value_names_the_path_and_encode(
    encoder: Encoder, value: Any, place: str
) -> None:
    with pytest.raises(UnencodableValue, match=f"{place}.*give Streams an `encode` function"):
        encoder.payload(value)


def test_the_error_for_a_type_that_encode_does_not_take_says_why() -> None:
    with pytest.raises(UnencodableValue, match=r"object: .* \(`encode` raised TypeError\(.*no len"):
        Encoder(len).payload([object()])


def test_an_error_in_encode_is_raised_with_the_path_as_a_note() -> None:
    def broken(value: Any) -> Any:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        Encoder(broken).payload({"a": [object()]})
    assert caught.value.__notes__ == ["`encode` failed at a[0], a object"]


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), Event(b"x")])
def test_a_binary_value_is_refused(value: Any) -> None:
    with pytest.raises(UnencodableValue, match="yield text, or encode it yourself"):
        payload(value)


@pytest.mark.parametrize("binary", [b"x", bytearray(b"x"), memoryview(b"x")])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda binary: {"a": 1, "png": binary}, "png"),
        (lambda binary: {"images": [{"png": binary}]}, r"images\[0\].png"),
        (lambda binary: Event([(1, binary)], event="image"), r"\[0\]\[1\]"),
        (lambda binary: Shelf([{"a": binary}]), r"boxes\[0\].a"),
        (lambda binary: Crate(binary), "content"),
        (lambda binary: [0] * 100_000 + [binary], r"\[100000\]"),
    ],
)
def test_binary_data_anywhere_in_the_first_value_is_refused(
    wrap: Callable[[Any], Any], path: str, binary: Any
) -> None:
    with pytest.raises(UnencodableValue, match=f": {path}: {type(binary).__name__}: yield text"):
        Encoder().first_payload(wrap(binary), "source")


def test_a_binary_key_is_refused() -> None:
    with pytest.raises(UnencodableValue, match=r"a\[0\]\[b.key.\]: bytes: yield text"):
        Encoder().first_payload({"a": [{b"key": 1}]}, "source")


def test_what_encode_returns_is_not_binary() -> None:
    with pytest.raises(UnencodableValue, match=r"\[0\]: Timestamp: `encode` returned bytes"):
        Encoder(lambda value: b"x").payload([Timestamp()])


async def test_a_run_checks_its_first_event_for_binary_data() -> None:
    @source
    async def images() -> AsyncIterator[Any]:
        yield {"images": [{"png": b"x"}]}

    async with client_of(Streams([images])) as client:
        response = await client.get("/streams/images")
    assert response.status_code == 500
    assert "images[0].png: bytes: yield text, or encode it" in response.json()["detail"]


@pytest.mark.parametrize(
    "value",
    ["data: {}\n\n", "event: a\ndata: 1\n\n", ": comment\n\n", Event(text="id: 1\ndata:2\n\n")],
)
def test_a_source_that_frames_its_events_is_warned_about_once(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder()
    with caplog.at_level(logging.WARNING, "streams"):
        first = encoder.first_payload(value, "framed")
        encoder.first_payload(value, "framed")
        encoder.first_payload("data: this is text", "fine")
        encoder.first_payload("text\n\n", "fine")
    assert first == payload(value), "the value is sent nevertheless"
    (message,) = caplog.messages
    assert message.startswith("source framed yields text that is an SSE frame already, ")
    assert "Yield only the value" in message


async def test_a_run_checks_its_first_event_for_frames(caplog: pytest.LogCaptureFixture) -> None:
    @source
    async def framed() -> AsyncIterator[str]:
        yield "data: 1\n\n"
        yield "data: 2\n\n"

    async with client_of(Streams([framed])) as client:
        for _ in range(2):
            events = await every_event(client, "/streams/framed")
            assert events[1].json() == "data: 1\n\n"
    assert sum("an SSE frame already" in message for message in caplog.messages) == 1
