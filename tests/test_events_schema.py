"""declaration.py: the schema of what a source yields, from its yield annotation."""

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any, NotRequired, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest

from streams import Event
from streams.declaration import events_schema_of
from streams.event import payload


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Named(TypedDict):
    name: str
    nick: NotRequired[str]


class Shape(msgspec.Struct, tag=True):
    inside: "list[Shape]" = []


class Model(pydantic.BaseModel):
    from_: int = pydantic.Field(alias="from")


class Aliased(pydantic.BaseModel, serialize_by_alias=True):
    from_: int = pydantic.Field(alias="from")


class Unknown:
    """Only an app's `encode` knows what it becomes."""


async def _points() -> AsyncIterator[Point]:
    yield Point(1)


def _named() -> Iterator[Named]:
    yield {"name": "a"}


async def _shapes() -> AsyncGenerator[Shape, None]:
    yield Shape()


async def _texts() -> AsyncIterator[str]:
    return _points()  # type: ignore[return-value]


async def _union() -> AsyncIterator[Point | Named | None]:
    yield None


async def _either() -> AsyncIterator["Point | list[int]"]:
    yield [1]


async def _model() -> AsyncIterator[Model]:
    yield Model(**{"from": 1})


async def _aliased() -> AsyncIterator[Aliased]:
    yield Aliased(**{"from": 1})


async def _listed() -> AsyncIterator[list[Point | Named]]:
    yield [Point(1), {"name": "a"}]


async def _mapped() -> AsyncIterator[dict[str, tuple[Point | Named, ...]] | int]:
    yield {"a": (Point(1), {"name": "a"})}
    yield 1


async def _annotated() -> AsyncIterator[Annotated[Point | Named, "either"]]:
    yield Point(1)


class Nested(msgspec.Struct):
    either: Point | Named


async def _partly() -> AsyncIterator[Nested | Point]:
    yield Nested({"name": "a"})
    yield Point(1)


async def _text_or_binary() -> AsyncIterator[str | bytes]:
    yield "a"


async def _unknown() -> AsyncIterator[dict[str, Unknown]]:
    yield {}


POINT = {
    "title": "Point",
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0.0}},
    "required": ["x"],
}
NAMED = {
    "title": "Named",
    "type": "object",
    "properties": {"name": {"type": "string"}, "nick": {"type": "string"}},
    "required": ["name"],
}
EITHER = {"anyOf": [{"$ref": "#/$defs/Point"}, {"$ref": "#/$defs/Named"}]}


@pytest.mark.parametrize(
    ("function", "schema", "definitions"),
    [
        (_points, {"$ref": "#/$defs/Point"}, {"Point": POINT}),
        (partial(_points), {"$ref": "#/$defs/Point"}, {"Point": POINT}),
        (_named, {"$ref": "#/$defs/Named"}, {"Named": NAMED}),
        (_texts, {"type": "string"}, {}),
        (
            _union,
            {"anyOf": [{"$ref": "#/$defs/Point"}, {"$ref": "#/$defs/Named"}, {"type": "null"}]},
            {"Point": POINT, "Named": NAMED},
        ),
        (
            _either,
            {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "array", "items": {"type": "integer"}}]},
            {"Point": POINT},
        ),
        (
            _listed,
            {"type": "array", "items": EITHER},
            {"Point": POINT, "Named": NAMED},
        ),
        (
            _mapped,
            {
                "anyOf": [
                    {
                        "type": "object",
                        "additionalProperties": {"type": "array", "items": EITHER},
                    },
                    {"type": "integer"},
                ]
            },
            {"Point": POINT, "Named": NAMED},
        ),
        (_annotated, EITHER, {"Point": POINT, "Named": NAMED}),
        (
            _partly,
            {"anyOf": [{"title": "Nested"}, {"$ref": "#/$defs/Point"}]},
            {"Point": POINT},
        ),
        (_text_or_binary, {"type": "string"}, {}),
        (
            _unknown,
            {"type": "object", "additionalProperties": {"title": "Unknown"}},
            {},
        ),
    ],
)
def test_the_schema_of_the_events_is_that_of_the_yield_annotation(
    function: Any, schema: dict[str, Any], definitions: dict[str, Any]
) -> None:
    found = events_schema_of(function)
    assert found is not None
    assert found.pop("$defs", {}) == definitions
    assert found == schema


@pytest.mark.parametrize(
    "function", [_points, _shapes, _model, _aliased, _listed, _mapped, _partly]
)
async def test_an_event_fits_the_schema_of_its_source(function: Any) -> None:
    schema = events_schema_of(function)
    assert schema is not None
    async for event in function():
        value = msgspec.json.decode(payload(event)[1])
        jsonschema.validate(value, schema)
        if function is not _partly:  # Anything may be a Nested.
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({"other": value}, schema)


async def _bare():  # type: ignore[no-untyped-def]
    yield 1


async def _events() -> AsyncIterator[Event | Point]:
    yield Point(1)


async def _anything() -> AsyncIterator[Any]:
    yield 1


async def _unparametrized() -> AsyncIterator:  # type: ignore[type-arg]
    yield 1


async def _for_checkers() -> "AsyncIterator[OnlyForTypeCheckers]":  # type: ignore[name-defined]  # noqa: F821
    yield 1


async def _nested() -> AsyncIterator[Nested]:
    yield Nested(Point(1))


class Calling(pydantic.BaseModel):
    call: Callable[[], int]


async def _callings() -> AsyncIterator[Calling]:
    yield Calling(call=int)


class Tree:
    """Like `type Tree = list[Tree | Point | Named]`, which is for Python 3.12."""

    __value__: Any


Tree.__value__ = list[Tree | Point | Named]


async def _tree() -> AsyncIterator[Tree]:
    yield Tree()


async def _binary() -> AsyncIterator[bytes]:
    yield b"a"


async def _binaries() -> AsyncIterator[bytearray | memoryview]:
    yield bytearray(b"a")


def _made() -> Any:
    class Made(msgspec.Struct):
        x: int

    return Made


async def _namesakes() -> AsyncIterator[Any]:
    yield _made()(1)


_namesakes.__annotations__["return"] = AsyncIterator[_made() | _made()]  # type: ignore[misc]


def _topic(user: str) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        _bare,
        _events,
        _anything,
        _unparametrized,
        _for_checkers,
        _nested,
        _callings,
        _binary,
        _binaries,
        _tree,
        _namesakes,
        _topic,
    ],
)
def test_there_is_no_schema_where_nothing_is_known_of_the_events(function: Any) -> None:
    assert events_schema_of(function) is None
